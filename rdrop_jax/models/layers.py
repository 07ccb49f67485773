"""Layers shared by all models. Every model uses the Dropout in this module."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.core.dropout import check_rate, dropout, layer_drop
from rdrop_jax.core.meshes import platform
from rdrop_jax.core.passes import Key
from rdrop_jax.models.attend import attend, fused_attend, scaled

Dtype = Any
Module = TypeVar("Module", bound=nn.Module)

# Sharding of the kernels in this file over the tensor axis, by the end of their path.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(query|key|value|mlp_in|mlp_gate)/kernel", PartitionSpec(None, "tensor")),
    (r"(query|key|value|mlp_in|mlp_gate)/bias", PartitionSpec("tensor")),
    (r"(attention_out|mlp_out)/kernel", PartitionSpec("tensor", None)),
)


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact (erf) GELU of BERT, BART and ViT, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Compute the slope directly instead of differentiating every factor."""
    (x,), (dx,) = primals, tangents
    half = jnp.asarray(0.5, x.dtype)
    below = half * (1 + jax.lax.erf(x * jnp.asarray(2**-0.5, x.dtype)))
    density = jnp.exp(-half * x * x) * jnp.asarray((2 * math.pi) ** -0.5, x.dtype)
    return gelu(x), dx * (below + x * density)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Dropout(nn.Module):
    """Inverted dropout with an independent mask entry for every element.

    No axis shares a mask, in particular not the batch axis. Passes that share a mask
    have equal outputs, and R-Drop would have no effect.

    Attributes:
      rate: probability that an element is dropped, in [0, 1).
      masks: "hash" or "bernoulli"; see `rdrop_jax.dropout`.
    """

    rate: float
    masks: str = "hash"

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        check_rate(self.rate)
        if not train or self.rate == 0.0:
            return x
        return dropout(self.mask_key(), x, self.rate, masks=self.masks)

    def mask_key(self) -> Key:
        """Draw the PRNG key of the mask of this call."""
        return self.make_rng("dropout")


class LayerDrop(nn.Module):
    """Per-example LayerDrop, in training only; nothing is rescaled.

    Attributes:
      rate: probability that an example skips the layer, in [0, 1).
      masks: see `Dropout`.
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
    """`nn.Dense`, on flattened rows on CPU, without a reshape on accelerators.

    The gradient of a kernel applied to [batch, time, width] contracts two axes. XLA's
    CPU backend does this at little more than half the speed of one axis. On a TPU, a
    reshape that merges rows or splits heads copies the array.

    Attributes:
      features: width of the output; None for the input width.
      dtype: dtype of the activations; parameters are float32.
      kernel_init: initializer of the kernel.
      heads: number of heads into which to split the output; None does not split it.
      merge: whether the input has two last axes, heads and head, to be merged.
      use_bias: whether a bias is added.
    """

    features: int | None
    dtype: Dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    heads: int | None = None
    merge: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        axes = 2 if self.merge else 1
        rows, width = x.shape[:-axes], math.prod(x.shape[-axes:])
        shape = (width, self.features or width)
        if self.heads and shape[1] % self.heads:
            raise ValueError(
                f"heads must divide the width: found {self.heads}, {shape[1]}"
            )
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        split = (self.heads, shape[1] // self.heads) if self.heads else shape[1:]
        if platform() == "cpu":
            y = x.reshape(-1, width) @ kernel
            y = y if bias is None else y + bias[None]
            return y.reshape(*rows, *split)
        kernel = kernel.reshape(*x.shape[-axes:], *split)
        y = jnp.tensordot(x, kernel, axes)
        return y if bias is None else y + bias.reshape(*(1,) * len(rows), *split)


def rematerialized(
    block: type[Module], remat: bool | str, train_argument: int
) -> type[Module]:
    """Return a module class that is recomputed in the backward pass.

    Args:
      block: the class.
      remat: False returns the class unchanged. True keeps only the inputs of the block.
        A name in `jax.checkpoint_policies` specifies what else is kept.
      train_argument: position of the boolean ``train``, which must be static; the
        module is position 0.
    """
    if not remat:
        return block
    name = "nothing_saveable" if remat is True else remat
    policy = getattr(jax.checkpoint_policies, name)
    return nn.remat(block, policy=policy, static_argnums=(train_argument,))


def recomputed(layers: Callable[..., Array], dtype: Dtype) -> Callable[..., Array]:
    """Recompute what cheap layers keep for the backward pass, in a narrow dtype.

    Args:
      layers: function of a module, in whose scope it makes layers, and of arrays. From
        an activation to the next product, only the arrays are then kept.
      dtype: dtype of the activations; in float32, nothing is recomputed.

    Returns:
      A function like ``layers``.
    """
    if dtype == jnp.float32:
        return layers
    return nn.remat(layers)


class Mlp(nn.Module):
    """Two dense layers with dropout after the activation and after the second layer.

    Attributes:
      width: width of the hidden layer, and of the gate.
      dropout: dropout rate after the second layer.
      dtype: dtype of the activations.
      masks: see `Dropout`.
      activation_dropout: dropout rate after the activation; None means ``dropout``.
      activation: name in `ACTIVATIONS`.
      kernel_init: initializer of the kernels.
      gated: whether the activation is multiplied by a further dense layer, as in SwiGLU
        (Shazeer, 2020).
    """

    width: int
    dropout: float
    dtype: Dtype = jnp.float32
    masks: str = "hash"
    activation_dropout: float | None = None
    activation: str = "gelu"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    gated: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], *, train: bool
    ) -> Float[Array, "batch time width"]:
        dense = partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        inner = self.activation_dropout
        inner = self.dropout if inner is None else inner

        def second(mlp: nn.Module, h: Array, *gates: Array) -> Array:
            del mlp  # `nn.remat` passes the module
            h = math.prod(gates, start=ACTIVATIONS[self.activation](h))
            h = Dropout(inner, self.masks)(h, train=train)
            return dense(x.shape[-1], name="mlp_out")(h)

        h = dense(self.width, name="mlp_in")(x)
        gates = [dense(self.width, name="mlp_gate")(x)] if self.gated else []
        h = recomputed(second, self.dtype)(self, h, *gates)
        return Dropout(self.dropout, self.masks)(h, train=train)


class LayerScale(nn.Module):
    """Learned scale for each channel of a sublayer's output (Touvron et al., 2021).

    Attributes:
      initial: initial value; None returns the input, without a parameter.
      dtype: dtype of the activations.
    """

    initial: float | None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        if self.initial is None:
            return x
        start = nn.initializers.constant(self.initial)
        scale = self.param("scale", start, x.shape[-1:], jnp.float32)
        shape = (*(1,) * (x.ndim - 1), -1)
        return x * scale.astype(self.dtype).reshape(shape)


class KeysValues(NamedTuple):
    """Cached keys and values of projected positions, per head."""

    keys: Float[Array, "batch *beam heads time head"]
    values: Float[Array, "batch *beam heads time head"]


class Attention(nn.Module):
    """Multi-head attention with dropout on its weights and on its output.

    Attributes:
      heads: number of heads; divides the width.
      weights_dropout: dropout rate on the attention weights.
      out_dropout: dropout rate after the output projection.
      dtype: dtype of the activations; the softmax runs in float32.
      masks: see `Dropout`.
      kernel_init: initializer of queries, keys and values.
      out_init: initializer of the output projection.
      use_bias: whether the projections have biases.
      fused: whether to use `fused_attend` on an NVIDIA GPU where it applies.
    """

    heads: int
    weights_dropout: float = 0.0
    out_dropout: float = 0.0
    dtype: Dtype = jnp.float32
    masks: str = "hash"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    use_bias: bool = True
    fused: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        dense = partial(Dense, None, self.dtype, use_bias=self.use_bias)
        self.query, self.key, self.value = (
            dense(self.kernel_init, heads=self.heads) for _ in "qkv"
        )
        self.attention_out = dense(self.out_init, merge=True)
        self.drop_weights = Dropout(self.weights_dropout, self.masks)
        self.drop_out = Dropout(self.out_dropout, self.masks)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        context: Float[Array, "batch source width"],
        *,
        where: Bool[Array, "#batch 1 #time source"] | None = None,
        relative: Float[Array, "#batch heads time source"] | None = None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Attend from every position of x to the context.

        Args:
          x: inputs of the queries.
          context: inputs of the keys and values; x itself in self-attention.
          where: attention mask; True where a position may attend.
          relative: term added to the scores, for relative positions.
          train: whether dropout is on.

        Returns:
          An array like x.
        """
        query, key, value = self.query(x), self.key(context), self.value(context)
        return self.mix(query, key, value, where, relative, train)

    def mix(
        self,
        query: Float[Array, "batch time heads head"],
        key: Float[Array, "batch source heads head"],
        value: Float[Array, "batch source heads head"],
        where: Bool[Array, "#batch 1 #time source"] | None,
        bias: Float[Array, "#batch heads time source"] | None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Mix the values by attention with a bias of its scores, and project them."""
        drop = self.drop_weights
        rate = drop.rate if train else 0.0
        if query.dtype == jnp.float32:
            scores = jnp.einsum("bthd,bshd->bhts", query, key)
            weights = self._softmax(scores, query.shape[-1], where, bias)
            mixed = jnp.einsum("bhts,bshd->bthd", drop(weights, train=train), value)
        elif self.fused and not rate and bias is None and platform() == "gpu":
            mixed = fused_attend(query, key, value, where)
        else:
            of_mask = drop.mask_key() if rate else None, rate, drop.masks
            mixed = attend(query, key, value, where, *of_mask, bias)
        return self.drop_out(self.attention_out(mixed), train=train)

    def keys_values(self, context: Float[Array, "batch source width"]) -> KeysValues:
        """Project a context to keys and values once, for reuse by all `look` calls."""
        key, value = self.key(context), self.value(context)
        return KeysValues(key.swapaxes(1, 2), value.swapaxes(1, 2))

    def look(
        self,
        x: Float[Array, "batch beam width"],
        memory: KeysValues,
        where: Bool[Array, "batch source"],
    ) -> Float[Array, "batch beam width"]:
        """Run one step of cross-attention; beams of an example share its memory.

        Args:
          x: one new position per beam.
          memory: result of `keys_values`, [batch, heads, source, head].
          where: True on source tokens.

        Returns:
          An array like x.
        """
        query = self.query(x).swapaxes(1, 2)
        scores = query @ memory.keys.swapaxes(2, 3)
        weights = self._softmax(scores, query.shape[-1], where[:, None, None])
        return self.attention_out((weights @ memory.values).swapaxes(1, 2))

    def step(
        self,
        x: Float[Array, "batch beam width"],
        past: KeysValues,
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "batch beam width"], KeysValues]:
        """Run one step of causal self-attention.

        Args:
          x: vector at position ``index`` of each beam.
          past: cache [batch, beam, heads, time, head], filled before ``index``.
          index: current position, less than time.

        Returns:
          An array like x, and ``past`` including this position.
        """
        keys, values = (p(x)[:, :, :, None] for p in (self.key, self.value))
        update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index, axis=3)
        keys = update(past.keys, keys.astype(past.keys.dtype))
        values = update(past.values, values.astype(past.values.dtype))
        query = self.query(x)
        where = jnp.arange(keys.shape[3]) <= index
        scores = jnp.einsum("bkhd,bkhtd->bkht", query, keys)
        weights = self._softmax(scores, query.shape[-1], where[None, None, None])
        mixed = jnp.einsum("bkht,bkhtd->bkhd", weights, values)
        return self.attention_out(mixed), KeysValues(keys, values)

    def _softmax(
        self, scores: Array, width: int, where: Array | None, bias: Array | None = None
    ) -> Array:
        """Compute attention weights from query-key products, internally in float32."""
        scores = scaled(scores, width, where, bias)
        return jax.nn.softmax(scores, axis=-1).astype(self.dtype)
