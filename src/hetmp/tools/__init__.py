"""The commands beside training, a file or a folder each. Nothing below imports this package."""
