"""A run under watch: the `session` that owns everything put on a model (its edits in `editor`, what it keeps in
`keeper`, both at one attention in `head_tap`, where the run is in `moment`), what it recorded (`tape`, `shelf`,
`size`), and what is read on the way (`statistics`, `weights`) or from a tape (`writes`)."""
