"""From texts, chats and pictures to inputs of a model."""
