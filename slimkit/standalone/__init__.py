"""The code that travels inside every model folder. It imports torch, Pillow and the standard library alone."""
