"""The null GPU: torch's, Triton's and this project's CUDA code runs on the host, and no kernel does."""
