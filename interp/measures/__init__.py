"""How much a head matters, one measure a file: `interp.importance` puts them side by side."""
