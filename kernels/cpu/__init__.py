"""Attention on a CPU in torch's own operators: `reference` (the definition), `rows` (chosen rows and heads), `sweep`
(all statistics, block by block), `merge` (spans of keys put together), `ring` (keys that come part by part, as from
other processes), `products` (which product of matrices is quickest)."""
