"""seqrt."""
