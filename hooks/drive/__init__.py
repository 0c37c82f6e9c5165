"""Running a model's blocks ourselves: what one run leaves (`recording`), many changed versions of it (`questions`,
`sweep`, `replay`, `slices`, `packed`), single blocks again (`chain`, `walk`), and on to the logits (`readout`, `tail`,
`unembedding`), in the quicker of two products (`faster`)."""
