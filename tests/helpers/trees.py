"""Conversions between flat and nested trees of parameters."""

import jax.numpy as jnp


def nested(flat):
    tree = {}
    for path, x in flat.items():
        *parents, leaf = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = jnp.asarray(x)
    return tree
