"""From a float network to the list of operations that its int8 network runs."""
