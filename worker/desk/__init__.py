"""The desk of ops: which rejections there are, what became of each, and what is open."""
