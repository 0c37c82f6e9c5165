"""The sweep behind `interp.patch`: cells, sources, alignment, and holding answers against full passes."""
