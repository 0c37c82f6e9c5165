"""The explorer: heads of a model in one page that works without a network, in a notebook, and as a still picture."""
