"""Running a model's blocks ourselves: the machine that records and runs them (`blocks`, `recording`) and stands in them
for one thread (`intercept`); many changed versions of one run (`questions`, `sweep`, `replay`, `versions`, `slices`,
`packed`); single blocks with frozen heads (`chain`); on to the logits (`tail`); the quicker of two products
(`faster`)."""
