"""Compiles every GPU kernel without a GPU."""
