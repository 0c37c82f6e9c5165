"""Pictures in a model's input: grids of cells (`grids`), and one record a family of vision-language models (`record`),
in a file a family. A new family is its file here."""
