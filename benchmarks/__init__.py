"""Benchmarks: each figure that a page quotes has the program here that made it, beside its limit."""
