"""Plots of results, as PNG files."""
