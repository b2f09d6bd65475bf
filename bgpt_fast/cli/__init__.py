"""The command line, `bgpt-fast`."""
