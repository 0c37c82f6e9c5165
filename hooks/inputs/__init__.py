"""What a model is called with: tensors and which are real (`inputs`, `arguments`, `positions`), what each token is and
where in the picture it is (`roles`, `labels`, `sound`), its text (`token_text`, `table`), on disk (`files`)."""
