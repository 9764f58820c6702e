"""Measurements that the command line and `benchmarks/` share: a model end to end, a decode step's parts, kernels."""
