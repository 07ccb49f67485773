"""Layers that every model uses. All dropout in the house is the Dropout below."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

Dtype = Any

# Where the tensor axis cuts the matrices named in this file, by the end of their path.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(query|key|value|mlp_in)/kernel", PartitionSpec(None, "tensor")),
    (r"(query|key|value|mlp_in)/bias", PartitionSpec("tensor")),
    (r"(attention_out|mlp_out)/kernel", PartitionSpec("tensor", None)),
)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact (erf) GELU of BERT, BART and ViT, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


class Dropout(nn.Module):
    """Inverted dropout with a mask entry of its own for every element.

    No axis is shared, the batch axis least of all: passes that share a mask agree by
    construction and R-Drop has nothing to compare.

    Attributes:
      rate: probability that an element is dropped, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"dropout rate must be in [0, 1): found {self.rate}")
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(mask, x / keep, jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two dense layers, dropout after the activation and after the second.

    Attributes:
      width: of the hidden layer.
      dropout: rate at both sites.
      dtype: of the activations.
    """

    width: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], *, train: bool
    ) -> Float[Array, "batch time width"]:
        h = gelu(nn.Dense(self.width, dtype=self.dtype, name="mlp_in")(x))
        h = Dropout(self.dropout)(h, train=train)
        h = nn.Dense(x.shape[-1], dtype=self.dtype, name="mlp_out")(h)
        return Dropout(self.dropout)(h, train=train)


class Attention(nn.Module):
    """Multi-head attention, dropout on its weights and on its output.

    Attributes:
      heads: number of heads; divides the width.
      weights_dropout: rate on the attention weights.
      out_dropout: rate after the output projection.
      dtype: of the activations; the softmax runs in float32.
    """

    heads: int
    weights_dropout: float = 0.0
    out_dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        context: Float[Array, "batch source width"],
        *,
        where: Bool[Array, "batch 1 #time source"] | None = None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(
                f"heads must divide the width: found {self.heads}, {width}"
            )

        def project(name: str, inputs: Array) -> Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:2], self.heads, width // self.heads)

        query, key = project("query", x), project("key", context)
        value = project("value", context)
        scores = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
        scores = scores / jnp.sqrt(jnp.float32(width // self.heads))
        if where is not None:
            scores = jnp.where(where, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(self.weights_dropout)(weights, train=train)
        mixed = jnp.einsum("bhts,bshd->bthd", weights, value)
        mixed = mixed.reshape(*mixed.shape[:2], width)
        out = nn.Dense(width, dtype=self.dtype, name="attention_out")(mixed)
        return Dropout(self.out_dropout)(out, train=train)
