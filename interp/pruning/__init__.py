"""What pruning is made of: whose weights are whose, choosing heads, cutting them out, and cut models on disk."""
