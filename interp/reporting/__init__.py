"""What a report is made of: steps that are journaled, one file each, and the files they are written to at the end."""
