"""One contract for a worker, whichever the broker."""
