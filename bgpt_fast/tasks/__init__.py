"""What people do with a byte model."""
