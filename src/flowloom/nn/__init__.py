"""Networks in pure torch; the names of their parameters are the released checkpoints'."""
