"""Attention on a GPU in Triton: the host side (`attend` is `impl="triton"`) and, in the files named `device_*`, the
kernels."""
