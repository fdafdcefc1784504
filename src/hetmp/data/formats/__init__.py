"""The file formats that data sets are read from, a file each."""
