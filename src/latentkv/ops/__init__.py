"""What every kernel must compute, in plain PyTorch, one operation per file: the reference and the portable path."""
