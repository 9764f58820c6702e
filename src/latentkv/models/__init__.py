"""A checkpoint as a model: configuration, layers, weights, tokenizer."""
