"""Heads over a corpus in fixed memory: documents read block by block (`documents`), what is measured of each
(`measures`), and what is kept of it (`tally`, by `sums` that add up exactly and a `sketch` of quantiles). `corpus` goes
through the blocks, here or in shards, which `merging` adds up; `read` is the result."""
