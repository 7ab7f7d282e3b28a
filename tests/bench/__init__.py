"""Measures the product against its peers on one work load, on the machine where it is run.

Everything is real: Debian's docker-registry stands upstream and at the site, every contender is a
process of its own, and what each of them costs is what the kernel accounted for it. Contenders of
one measurement take turns in rotating order within one run, so that a slow minute of the machine
hits them all; the report gives medians, extremes and ratios.

``python -m tests.bench --help``; the method and results are in docs/benchmarks.md.
"""
