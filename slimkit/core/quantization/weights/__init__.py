"""Weights and biases as integers: one by one, by least squares, layer by layer."""
