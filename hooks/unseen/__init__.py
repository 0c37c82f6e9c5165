"""Attention that no standpoint sees: who computes it, where its heads are, what is said of it where it is not held."""
