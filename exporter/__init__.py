"""How a checkpoint becomes a bundle: read, traced, quantised, written and checked.

`export.py` has the order of it all, `checkpoints/` one file for each source format. The room needs torch and onnx and
shares with `runtime` only the bundle's format; docs/architecture.md goes through its modules.
"""
