"""Decoding that looks at the picture: two branches of one model held against each other, and what the branches are."""
