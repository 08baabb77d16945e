"""The weights of an int8 network as one short string of bytes, of which `standalone/model.py` says what is in it."""
