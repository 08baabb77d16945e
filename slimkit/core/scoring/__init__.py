"""The contest's score: of one model or of many, slimkit's own or strangers'."""
