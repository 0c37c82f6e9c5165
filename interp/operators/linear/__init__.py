"""Attention in time linear in length: sums over keys that a row reads through a product (`streams`), by feature maps
(`features`, `linear`), with rows that sum to 1 (`inline`), with weighed keys (`rank_augmented`), through agents
(`agent`), a constant query (`scan`); and one that is not linear but made of lines (`local_linear`)."""
