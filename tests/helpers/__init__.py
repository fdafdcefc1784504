"""What tests share: running the program, comparing with plain torch, making data."""
