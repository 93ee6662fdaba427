"""Latency profiling: what is measured, what is made of it, and how two profiles compare."""
