"""The sink's store: the latest row of every key, read from the accepted topics."""
