"""Programs of a model, compiled elsewhere: StableHLO that JAX runs where there is no TensorFlow.

`lower` writes what TensorFlow makes of a function or of a whole training step; `load`, which needs
JAX and NumPy alone, makes it a function again, on any accelerator that JAX knows.
"""
