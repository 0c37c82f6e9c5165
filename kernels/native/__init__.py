"""Attention on a CPU in one C++ pass, compiled on first use: `attend` is `impl="native"`."""
