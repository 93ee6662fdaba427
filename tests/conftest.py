"""For all tests: numerical accidents are errors, and hypothesis has one profile."""

import os

import hypothesis
import numpy as np

# Underflow is how probabilities of impossible tokens become zero.
np.seterr(divide="raise", invalid="raise", over="raise")

# No deadline: a busy machine is no fault of the code. In CI the same examples come every time.
hypothesis.settings.register_profile("seqrt", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("seqrt")
