"""Figures and tables of a report, from plain rows: a `canvas` that writes SVG and PNG, `figures` on it, `tables` as TeX
and Markdown."""
