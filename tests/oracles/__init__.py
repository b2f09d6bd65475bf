"""Independent implementations that the package is tested against."""
