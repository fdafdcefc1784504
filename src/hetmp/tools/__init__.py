"""What stands beside training, a file or a folder for each command. Nothing below imports it."""
