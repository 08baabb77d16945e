"""Running the code of somebody else's submission behind a wall, and measuring it from outside."""
