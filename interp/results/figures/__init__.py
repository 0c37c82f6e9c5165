"""How results are drawn: maps and bars (`plots`), effects over their picture (`over_image`), saliency (`maps`)."""
