"""Models in a GGUF file: its `header`, which `architectures` are read and how, its `weights` and its `tokenizer` as
transformers holds them, and `convert`, which writes all of it as a directory in hub layout."""
