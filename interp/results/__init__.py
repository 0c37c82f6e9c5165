"""What calls return: values with a table, a plot and a directory of their own."""
