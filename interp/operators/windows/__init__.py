"""Softmax attention over fewer keys, by position: any mask of `interp.kernels.masks` (`masked`)."""
