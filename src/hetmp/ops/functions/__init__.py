"""The rules of functions and of methods of tensors, a file per family."""
