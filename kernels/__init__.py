"""Device code, jax only. One folder per operation: the plain-JAX reference is the contract of its kernels."""
