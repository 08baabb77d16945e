"""Measuring models: latency, size, accuracy, multiply-adds."""
