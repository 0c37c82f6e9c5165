"""Ways to find which edges carry a behaviour, one paper a file: estimates that are choices of `interp.edges`, masks
that are learned, edges with one score for each span of tokens."""
