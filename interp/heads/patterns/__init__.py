"""The parts of the atlas: what is measured of a pattern, how patterns are laid out, and the result."""
