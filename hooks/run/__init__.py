"""A run under watch: the `session` that owns everything put on a model (`head_tap`, `moment`), what it recorded
(`tape`, `shelf`, `size`), and what is read on the way (`statistics`, `weights`) or from a tape (`writes`)."""
