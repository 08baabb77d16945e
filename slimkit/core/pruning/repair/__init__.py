"""What is done for a network after its cut: BatchNorm, least squares, tuning."""
