"""What a report writes: its page (`page`) and its other files (`files`), from what was gathered and sections say."""
