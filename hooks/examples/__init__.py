"""Calls made up for a model: words, pictures, sound and series, tried on the model where no record says them."""
