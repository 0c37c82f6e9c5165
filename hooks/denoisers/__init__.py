"""diffusers' denoisers: what they are called with, which of their tokens are words and where the others are in the
picture."""
