"""What the page of heads is given: plain values in the shape that its scripts read."""
