"""The file formats that data sets are read from, one file each."""
