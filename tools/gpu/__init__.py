"""Checks and measurements on a GPU, and what stands in for one where there is none."""
