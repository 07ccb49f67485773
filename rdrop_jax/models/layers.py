"""Layers that every model uses. All dropout in the house is the Dropout below."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from rdrop_jax.core.dropout import check_rate, dropout, layer_drop

Dtype = Any

# Where the tensor axis cuts the matrices named in this file, by the end of their path.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(query|key|value|mlp_in)/kernel", PartitionSpec(None, "tensor")),
    (r"(query|key|value|mlp_in)/bias", PartitionSpec("tensor")),
    (r"(attention_out|mlp_out)/kernel", PartitionSpec("tensor", None)),
)


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact (erf) GELU of BERT, BART and ViT, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """One slope, where autodiff would go back through every factor."""
    (x,), (dx,) = primals, tangents
    half = jnp.asarray(0.5, x.dtype)
    below = half * (1 + jax.lax.erf(x * jnp.asarray(2**-0.5, x.dtype)))
    density = jnp.exp(-half * x * x) * jnp.asarray((2 * math.pi) ** -0.5, x.dtype)
    return gelu(x), dx * (below + x * density)


class Dropout(nn.Module):
    """Inverted dropout with a mask entry of its own for every element.

    No axis is shared, the batch axis least of all: passes that share a mask agree by
    construction and R-Drop has nothing to compare.

    Attributes:
      rate: probability that an element is dropped, in [0, 1).
      masks: "hash" or "bernoulli", as `rdrop_jax.dropout`.
    """

    rate: float
    masks: str = "hash"

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        check_rate(self.rate)
        if not train or self.rate == 0.0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate, masks=self.masks)


class LayerDrop(nn.Module):
    """Skips a layer example by example, in training alone; nothing is rescaled.

    Attributes:
      rate: probability that an example skips the layer, in [0, 1).
      masks: as `Dropout`.
    """

    rate: float
    masks: str = "hash"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ..."],
        new_x: Float[Array, "batch ..."],
        *,
        train: bool,
    ) -> Float[Array, "batch ..."]:
        check_rate(self.rate)
        if not train or self.rate == 0.0:
            return new_x
        key = self.make_rng("dropout")
        return layer_drop(key, x, new_x, self.rate, masks=self.masks)


class Dense(nn.Module):
    """`nn.Dense` over rows: the same numbers, far quicker gradients on CPU.

    The gradient of a kernel applied to [batch, time, width] contracts two axes at once,
    which XLA's CPU backend does at little more than half of the speed of one.

    Attributes:
      features: width of the output.
      dtype: of the activations; parameters are float32.
      kernel_init: initializer.
    """

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows out"]:
        width = x.shape[-1]
        shape = (width, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x.reshape(-1, width) @ kernel + bias[None]
        return y.reshape(*x.shape[:-1], self.features)


class Mlp(nn.Module):
    """Two dense layers, dropout after the activation and after the second.

    Attributes:
      width: of the hidden layer.
      dropout: rate at both sites.
      dtype: of the activations.
      masks: as `Dropout`.
    """

    width: int
    dropout: float
    dtype: Dtype = jnp.float32
    masks: str = "hash"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], *, train: bool
    ) -> Float[Array, "batch time width"]:
        h = gelu(Dense(self.width, dtype=self.dtype, name="mlp_in")(x))
        h = Dropout(self.dropout, self.masks)(h, train=train)
        h = Dense(x.shape[-1], dtype=self.dtype, name="mlp_out")(h)
        return Dropout(self.dropout, self.masks)(h, train=train)


class Attention(nn.Module):
    """Multi-head attention, dropout on its weights and on its output.

    Attributes:
      heads: number of heads; divides the width.
      weights_dropout: rate on the attention weights.
      out_dropout: rate after the output projection.
      dtype: of the activations; the softmax runs in float32.
      masks: as `Dropout`.
    """

    heads: int
    weights_dropout: float = 0.0
    out_dropout: float = 0.0
    dtype: Dtype = jnp.float32
    masks: str = "hash"

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
            y = Dense(width, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:2], self.heads, width // self.heads)

        query, key = project("query", x), project("key", context)
        value = project("value", context)
        scores = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
        scores = scores / jnp.sqrt(jnp.float32(width // self.heads))
        if where is not None:
            scores = jnp.where(where, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(self.weights_dropout, self.masks)(weights, train=train)
        mixed = jnp.einsum("bhts,bshd->bthd", weights, value)
        mixed = mixed.reshape(*mixed.shape[:2], width)
        out = Dense(width, dtype=self.dtype, name="attention_out")(mixed)
        return Dropout(self.out_dropout, self.masks)(out, train=train)
