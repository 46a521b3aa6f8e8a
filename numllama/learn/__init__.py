"""For readers: what the pages of the book use, in a notebook or a script of one's own."""
