"""Training on several devices: the ranks, and what happens to the gradients of an update."""
