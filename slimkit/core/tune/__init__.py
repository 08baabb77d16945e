"""`slimkit tune`: a recipe run many times with other options, which Optuna chooses, and what is best of it all."""
