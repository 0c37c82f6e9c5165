"""The places where we stand while a model runs: its attention call (`interface`, and the mathematics beside it in
`attention`, `narrow`, `tempered`), the borders of its modules (`ports`, `boundary`), its answer (`output`)."""
