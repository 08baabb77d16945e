"""Layers solved anew by least squares, from sampled rows of their inputs: for pruning's repair and for rounding."""
