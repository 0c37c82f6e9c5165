"""The commands of the command line, a file a group. Nothing here is imported before its command runs but `options`."""
