"""Networks: built by name, described as data, and found from a model argument."""
