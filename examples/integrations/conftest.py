"""Eight simulated devices for every test."""

import os

import jax

os.environ["KERAS_BACKEND"] = "jax"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
