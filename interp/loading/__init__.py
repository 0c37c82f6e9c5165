"""Models by name: `load` (hub, directory, zoo) and what turns text and pictures into inputs (`processors`)."""
