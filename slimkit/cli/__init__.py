"""The command line: one module per command, each parses its flags, calls the core once and renders what comes back."""
