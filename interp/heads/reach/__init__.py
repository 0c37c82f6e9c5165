"""What heads do together with others: sets that act together (`together`), heads that replace one that is removed
(`backups`), and the words that a head's output speaks of (`pursuit`)."""
