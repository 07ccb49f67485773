"""Safe reading and writing of files, without jax."""
