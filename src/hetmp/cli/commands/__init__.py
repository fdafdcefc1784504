"""One file per command: its options, its call, its output."""
