"""Which rows an export holds, and how they reach its files."""
