"""Where exports are published: a directory or a bucket."""
