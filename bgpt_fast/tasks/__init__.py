"""Applications of a byte model: evaluation, classification, conversion, media, music and CPU states."""
