"""Pictures that are spoilt, cell by cell or on purpose, and what then moves: the answer, and where heads look."""
