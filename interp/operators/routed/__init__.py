"""Softmax attention over fewer keys, by content: rows keep the keys of the largest guessed scores (`chosen`, what all
share), guessed by clusters (`clusters`), windows (`two_level`), chunks (`chunks`), a gate of the values
(`dynamic_mask`), a low rank (`low_rank`) or random features (`estimated`); and by landmarks that represent blocks
(`landmarks`)."""
