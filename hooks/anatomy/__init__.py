"""What a model is made of, as values and data: `towers` of layers and their ports, what configs (`attributes`),
families (`family`), norms and projections (`norms`, `quantised`) say, wrappers (`unwrap`), smallest inputs (`example`),
how long inputs may be (`lengths`), and models that cannot be looked into (`refusals`)."""
