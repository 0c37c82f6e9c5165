"""How far heads reach beside others: sets that act together (`together`), heads that stand in for one that is gone
(`backups`), and the words that a head's output speaks of (`pursuit`)."""
