"""What a report writes: figures, tables, references and pages, from what its steps `gathered`."""
