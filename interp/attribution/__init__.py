"""Estimates of what patching would do, one file per family of methods; `interp.attribute` chooses among them."""
