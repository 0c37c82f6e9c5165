"""What operators share (`operator`)."""
