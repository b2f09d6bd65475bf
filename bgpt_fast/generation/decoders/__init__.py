"""Decoders: one interface, and an implementation for the CPU, for NVIDIA GPUs and for all other devices."""
