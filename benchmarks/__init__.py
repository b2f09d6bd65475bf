"""The benchmark suite: `bgpt-fast bench`, or `pytest benchmarks/`."""
