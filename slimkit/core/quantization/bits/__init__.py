"""How many bits the weights of each layer get, where the size of the file is given."""
