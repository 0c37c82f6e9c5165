"""What `interp.edges`, `interp.acdc`, `interp.faithfulness` and `interp.Circuit` are made of, one job a file."""
