"""What sections of a report stand on: the journaled engine (`steps`), what is reported on (`subject`), what a `section`
says of itself, and what all of them `gathered`."""
