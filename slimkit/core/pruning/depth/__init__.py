"""Removing whole residual blocks, where that costs less than channels."""
