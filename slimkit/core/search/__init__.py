"""The search for a recipe: how far to cut and to how few bits to round, in the minutes given."""
