"""Which query sees which key, in symbols instead of an N x N tensor: `base` (what all masks share), `symbols` (causal,
windows, documents, padding and so on), `patterns` (neighbourhoods, dilated, strided, tables of blocks), `windows`
(shifted, with halos, powers of two)."""
