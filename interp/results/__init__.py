"""What calls return: values with a table, a plot and a directory of their own. What they share is written once: tables
of heads (`heads_table`), files (`saved`), intervals (`intervals`), figures (`figures/`)."""
