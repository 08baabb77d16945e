"""One self-contained HTML page of what the commands left in a folder."""
