"""How a bundle runs: engines, cache, drafters, verification, sampling and text, in numpy.

`model.py` is the way in, `generate.py` the decoding loop, `drafters/` and `engines/` what can be added to. Nothing here
imports torch or onnx; docs/architecture.md describes the loop.
"""
