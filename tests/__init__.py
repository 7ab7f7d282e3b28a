"""The tests, and what they, the demo and the benchmarks stand on."""
