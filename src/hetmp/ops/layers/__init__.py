"""The rules of ``nn.Module`` classes, a file per family."""
