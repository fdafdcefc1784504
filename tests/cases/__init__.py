"""Tables of modules and functions that more than one test runs through."""
