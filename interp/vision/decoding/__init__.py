"""Decoding that looks at the picture: two branches of one model compared with each other, and what the branches are."""
