"""Models that ship or are built here: the `catalog` and its weights, the `plain` attention-only class, tiny `families`
of every architecture, what the shipped ones can do (`measured`), and the self-checks over all of them (`doctor`)."""
