"""slimkit makes an image classifier small and fast, and proves it."""

__version__ = "0.1.0"
