"""`slimkit benchmark`: how long networks take beside one another, and how well that is known."""
