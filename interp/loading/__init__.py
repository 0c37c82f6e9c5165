"""Models by name: `load` (hub, directory, zoo), and cut models of our own on disk (`cut_models`)."""
