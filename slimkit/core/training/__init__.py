"""Training: the loop, its optimizers and schedule, and the choice of precision."""
