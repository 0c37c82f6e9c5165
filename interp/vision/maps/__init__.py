"""From weights on image tokens to places in the picture, and what is read off such maps.

`cells` paints a token's weight onto the pixels its cell covers, by the model's own labels; `carve` and `ground` look
for what a question is about.
"""
