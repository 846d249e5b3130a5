"""What the TPU compiler plans for the kernels, in bundles, bytes and microseconds: `python -m kernels.report`.

`figures` computes them from schedules, `programs` says how the kernels' loops are to be read, `comparison` is jax's own
kernel over a sweep of its block sizes, `sheets` and `command` show them. Everything is an estimate of the compiler.
"""
