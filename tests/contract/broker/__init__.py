"""What a broker promises, over each of them: also over the one in memory that simulations use."""
