"""`buddy rejections` killed while it follows the topics, and while it sends records again."""
