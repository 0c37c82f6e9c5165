"""Figures and tables of a report, from plain rows: `figures`, and `tables` as TeX and Markdown."""
