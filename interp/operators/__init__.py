"""Another attention in a head's place."""
