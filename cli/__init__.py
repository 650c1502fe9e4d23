"""The command line: parses, calls, prints. Everything it does can be done from Python."""
