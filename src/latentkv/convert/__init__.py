"""Checkpoints of other attention turned into MLA."""
