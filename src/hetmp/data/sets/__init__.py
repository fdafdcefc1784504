"""The data sets that have a name, a file each."""
