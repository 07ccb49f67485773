"""Core of R-Drop for any JAX project: no I/O, no config, no flax."""
