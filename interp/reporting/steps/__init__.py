"""What sections of a report use: the journaled engine (`steps`), what is reported on (`subject`), what a `section` says
of itself, and what all of them `gathered`."""
