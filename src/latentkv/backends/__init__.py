"""Who computes attention: the protocol (base), the choice (registry) and the backends themselves."""
