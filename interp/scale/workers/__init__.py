"""Cells done by many processes: Ray's workers, what they are handed, and what is left to do."""
