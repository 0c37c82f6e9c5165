"""Gradients of a metric at sites (`gradients`), under relevance rules (`rules`), and the repairs of AtP*
(`query_key`)."""
