"""Experiments on a machine that has an accelerator and JAX, but no TensorFlow.

What is trained is lowered here, by `tools.stablehlo`, and packed into a folder; a `device_*.py`,
which needs JAX, NumPy and Pillow alone, does the work there; what it brings back is collected here.
"""
