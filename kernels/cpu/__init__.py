"""Attention on a CPU in torch's own operators: `reference` (the definition), `rows` (chosen rows and heads), `sweep`
(all statistics, block by block), `merge` (spans of keys put together), `products` (which product of matrices is
quickest)."""
