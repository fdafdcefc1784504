"""One file per command: its words, its call, its output."""
