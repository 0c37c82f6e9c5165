"""Models by name: `load` brings a name nearer (`packages`, `holdings`, `parts`, and `converted` with the room `gguf`),
then reads it (`hub` for what transformers knows, `cut_models` for our own); `named` for the command line."""
