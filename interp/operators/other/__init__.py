"""Operators of other kinds: softmax over queries (`reversed`), scores from elsewhere (`static`), scores by distance
(`relative`), keys in addition to the text's (`memory`), attention between channels (`channels`)."""
