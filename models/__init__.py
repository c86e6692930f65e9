"""Networks with random, non-trivial statistics for tests, benchmarks and examples; not installed."""
