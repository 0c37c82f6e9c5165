"""Which image tokens are worth keeping, and a model that goes on with those alone."""
