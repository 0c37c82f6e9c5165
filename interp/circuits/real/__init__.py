"""What it takes for a circuit to be real, a question a file; `interp.circuits.judge` asks them all."""
