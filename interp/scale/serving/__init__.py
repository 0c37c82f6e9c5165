"""Heads inside a serving engine: what is asked for (`plans`), which tokens of a packed batch are whose (`packed`), what
reads heads in the engine's process (`inside`, through `worker`), and the engine as a user holds it (`served`,
`settings`, `answers`)."""
