"""Programs for developers of bgpt_fast, run as `python -m tools.gpu_check` at the root of a checkout."""
