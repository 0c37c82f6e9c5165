"""What the model would say from a place within it: the logit lens, lenses that are fitted, and gradients read as
words."""
