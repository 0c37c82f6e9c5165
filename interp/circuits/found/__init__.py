"""What discovery gives: scores of edges, circuits cut from them, how they are drawn and which files hold them."""
