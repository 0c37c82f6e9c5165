"""Estimates of head importance, one measure a file, and their `table`."""
