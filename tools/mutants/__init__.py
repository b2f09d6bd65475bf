"""Planted bugs: each must make a named test fail."""
