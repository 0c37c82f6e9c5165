"""What several questions about heads share."""
