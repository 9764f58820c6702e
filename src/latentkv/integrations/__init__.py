"""Doors to other systems. Nothing here imports the engine: what runs a model is asked through the doors below."""
