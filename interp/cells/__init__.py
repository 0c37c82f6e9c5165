"""Work that is a list of cells: written down chunk by chunk, cut into shards, done by this process or by others."""
