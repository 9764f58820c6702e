"""Request bodies: which fields there are, which values they take, and which are refused."""
