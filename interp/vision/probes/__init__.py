"""Small readers that are trained on the tokens of a picture: what a layer or a head's output says, and where."""
