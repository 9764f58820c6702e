"""The latent cache: bytes (layout), pages and prefixes (no torch), rows and tensors."""
