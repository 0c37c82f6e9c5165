"""Finding out about a model by watching it work: `trace` and `dissect` find its parts, `checks` hold what we say
against what it does, `capabilities` try what can be done with it; `answers` says which tensor is taken as its
output."""
