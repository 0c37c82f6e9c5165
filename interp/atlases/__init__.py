"""The parts of the pattern atlas: what is measured of a pattern, how patterns are embedded, and the result."""
