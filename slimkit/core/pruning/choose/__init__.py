"""Which channels go: what each matters, how far each group is narrowed, and the search for a budget."""
