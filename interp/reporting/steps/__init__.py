"""What a report does, as journaled steps: the engine (`steps`), what is reported on (`subject`), and one file a
step."""
