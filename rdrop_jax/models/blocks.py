"""Encoder and decoder blocks, post-norm as published or pre-norm, and their stack."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.core.dropout import check_rate, layer_drop
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.layers import (
    Attention,
    Dtype,
    KeysValues,
    LayerDrop,
    LayerScale,
    Mlp,
    rematerialized,
)

# Encoded source and the mask of its tokens.
Source = tuple[Float[Array, "batch source width"], Bool[Array, "batch 1 1 source"]]

_XAVIER = nn.initializers.variance_scaling
# Initializers of queries, keys and values (fairseq's gain of 1 / sqrt(2)), of the
# attention output, and of the MLP.
FAIRSEQ_INITS = (
    _XAVIER(0.5, "fan_avg", "uniform"),
    _XAVIER(1.0, "fan_avg", "uniform"),
    nn.initializers.xavier_uniform(),
)


class Rates(NamedTuple):
    """Dropout rates by site.

    Attributes:
      dropout: rate after the embedding and after every sublayer.
      attention: rate on attention weights.
      activation: rate after the activation of an MLP.
      layer: rate of per-example LayerDrop.
      attention_out: rate after the attention output; None means ``dropout``.
      path: rate of stochastic depth, on the outputs of attention and MLP.
    """

    dropout: float = 0.1
    attention: float = 0.0
    activation: float = 0.0
    layer: float = 0.0
    attention_out: float | None = None
    path: float = 0.0


class BlockSettings(NamedTuple):
    """Settings of all blocks of a model.

    ``layer_scale`` is as in `LayerScale`, ``gated`` as in `Mlp`, and
    ``fused`` as in `Attention`.
    """

    heads: int
    mlp_width: int
    rates: Rates
    pre_norm: bool
    activation: str
    dtype: Dtype
    masks: str
    norm_eps: float = 1e-5
    inits: tuple[nn.initializers.Initializer, ...] = FAIRSEQ_INITS
    layer_scale: float | None = None
    gated: bool = False
    fused: bool = False


def block_settings(module: Any, *, pre_norm: bool) -> BlockSettings:
    """Return the settings of the blocks of a decoder or an encoder-decoder."""
    return BlockSettings(
        module.size.heads,
        module.size.mlp_width,
        module.rates,
        pre_norm,
        module.activation,
        module.dtype,
        module.masks,
        fused=module.fused_attention,
    )


class DropPath(nn.Module):
    """Stochastic depth: drop the output of a sublayer for whole examples.

    Kept outputs are scaled by ``1 / (1 - rate)``. Source: Huang et al., 2016 (arXiv
    1603.09382), per example as in timm.

    Attributes:
      rate: probability that an example loses the output, in [0, 1).
      masks: see `rdrop_jax.dropout`.
    """

    rate: float
    masks: str = "hash"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool
    ) -> Float[Array, "batch ..."]:
        check_rate(self.rate)
        if not train or self.rate == 0.0:
            return x
        scale = jnp.asarray(1 / (1 - self.rate), x.dtype)
        key, zero = self.make_rng("dropout"), jnp.zeros_like(x)
        return layer_drop(key, zero, x * scale, self.rate, masks=self.masks)


class Block(nn.Module):
    """Self-attention, optional attention to a source, and MLP, with residuals.

    Attributes:
      settings: settings shared by all blocks.
      cross_attention: whether the block attends to a source.
    """

    settings: BlockSettings
    cross_attention: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        s = self.settings
        self.attention, self.attention_norm = self._attention(), self._norm()
        if self.cross_attention:
            self.cross, self.cross_norm = self._attention(), self._norm()
        self.mlp = Mlp(
            s.mlp_width,
            s.rates.dropout,
            s.dtype,
            s.masks,
            s.rates.activation,
            s.activation,
            s.inits[2],
            s.gated,
        )
        self.mlp_norm = self._norm()
        self.attention_scale = LayerScale(s.layer_scale, s.dtype)
        self.mlp_scale = LayerScale(s.layer_scale, s.dtype)
        self.drop = LayerDrop(s.rates.layer, s.masks)
        self.attention_path = DropPath(s.rates.path, s.masks)
        self.mlp_path = DropPath(s.rates.path, s.masks)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "#batch 1 #time time"] | None,
        source: Source | None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Apply the block to all positions.

        Args:
          x: inputs.
          where: True where a position may attend; None for everywhere.
          source: encoded source and its mask, if the block attends to one.
          train: whether dropout is on.

        Returns:
          An array like x.
        """
        start = x
        h = self._before(x, self.attention_norm)
        h = self.attention(h, h, where=where, train=train)
        x = x + self.attention_path(self.attention_scale(h), train=train)
        x = self._after(x, self.attention_norm)
        if source is not None:
            h = self._before(x, self.cross_norm)
            x = x + self.cross(h, source[0], where=source[1], train=train)
            x = self._after(x, self.cross_norm)
        h = self.mlp(self._before(x, self.mlp_norm), train=train)
        x = x + self.mlp_path(self.mlp_scale(h), train=train)
        return self.drop(start, self._after(x, self.mlp_norm), train=train)

    def step(
        self,
        x: Float[Array, "batch beam width"],
        past: KeysValues,
        index: Int[Array, ""],
        source: tuple[KeysValues, Bool[Array, "batch source"]] | None,
    ) -> tuple[Float[Array, "batch beam width"], KeysValues]:
        """Apply the block to position ``index`` of every beam, causal, dropout off."""
        h = self._before(x, self.attention_norm)
        h, past = self.attention.step(h, past, index)
        x = self._after(x + self.attention_scale(h), self.attention_norm)
        if source is not None:
            h = self._before(x, self.cross_norm)
            x = x + self.cross.look(h, *source)
            x = self._after(x, self.cross_norm)
        h = self.mlp(self._before(x, self.mlp_norm), train=False)
        x = x + self.mlp_scale(h)
        return self._after(x, self.mlp_norm), past

    def keys_values(self, memory: Float[Array, "batch source width"]) -> KeysValues:
        """Compute keys and values of the source, for `step`."""
        return self.cross.keys_values(memory)

    def _attention(self) -> Attention:
        s = self.settings
        out = s.rates.attention_out
        return Attention(
            s.heads,
            s.rates.attention,
            s.rates.dropout if out is None else out,
            s.dtype,
            s.masks,
            kernel_init=s.inits[0],
            out_init=s.inits[1],
            fused=s.fused,
        )

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.settings.norm_eps, dtype=self.settings.dtype)

    def _before(self, x: Array, norm: nn.Module) -> Array:
        return norm(x) if self.settings.pre_norm else x

    def _after(self, x: Array, norm: nn.Module) -> Array:
        return x if self.settings.pre_norm else norm(x)


def block_class(remat: bool | str) -> type[Block]:
    """Return `Block`, or a version that is recomputed in the backward pass."""
    return rematerialized(Block, remat, 4)


def encoder_block(encoder: Any, block: type[nn.Module]) -> Callable[..., nn.Module]:
    """Return the block of a text encoder, with the settings of the encoder.

    Args:
      encoder: module with size, rates, dtype and ``remat``.
      block: class that is called with inputs, a mask, ``train`` and further arrays.
    """
    return partial(
        rematerialized(block, encoder.remat, 3),
        encoder.size,
        encoder.dropout,
        encoder.attention_dropout,
        encoder.norm_eps,
        encoder.dtype,
        encoder.masks,
        encoder.fused_attention,
    )


class Stack(nn.Module):
    """Blocks of an encoder or a decoder.

    Attributes:
      depth: number of blocks.
      settings: settings of the blocks.
      final_norm: whether a LayerNorm follows the last block.
      remat: see `layers.rematerialized`.
      cross_attention: whether the blocks attend to a source.
    """

    depth: int
    settings: BlockSettings
    final_norm: bool
    remat: bool | str
    cross_attention: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        cls = block_class(self.remat)
        self.block = [
            cls(self.settings, self.cross_attention) for _ in range(self.depth)
        ]
        if self.final_norm:
            self.norm = nn.LayerNorm(1e-5, dtype=self.settings.dtype)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "#batch 1 #time time"],
        train: bool,
        source: Source | None = None,
    ) -> Float[Array, "batch time width"]:
        """Apply the blocks to all positions at once; see `Block`."""
        for block in self.block:
            x = block(x, where, source, train)
        return self._last(x)

    def step(
        self, x: Float[Array, "batch beam width"], cache: Cache
    ) -> tuple[Float[Array, "batch beam width"], Cache]:
        """Apply the blocks to the next position, with dropout off.

        Args:
          x: one vector per hypothesis.
          cache: cache of the preceding positions.

        Returns:
          An array like x, and the cache including this position.
        """
        sources: list[Any] = [None] * self.depth
        if cache.shared:
            memories, where = cache.shared
            sources = [(memory, where) for memory in memories]
        beams = []
        for block, past, source in zip(self.block, cache.beams, sources, strict=True):
            x, past = block.step(x, past, cache.filled, source)
            beams.append(past)
        return self._last(x), Cache(tuple(beams), cache.shared, cache.filled + 1)

    def empty_cache(
        self, width: int, batch: int, length: int, shared: tuple = ()
    ) -> Cache:
        """Create an empty cache of one beam.

        Args:
          width: width of the model.
          batch: number of examples.
          length: number of allocated positions.
          shared: keys and values of the source for each block, and its mask.

        Returns:
          The cache.
        """
        s = self.settings
        zeros = jnp.zeros((batch, 1, s.heads, length, width // s.heads), s.dtype)
        return Cache((KeysValues(zeros, zeros),) * self.depth, shared, jnp.int32(0))

    def _last(self, x: Array) -> Array:
        return self.norm(x) if self.final_norm else x


def causal_mask(time: int) -> Bool[Array, "1 1 time time"]:
    """Return the mask of positions that attend to themselves and earlier ones."""
    return jnp.tril(jnp.ones((1, 1, time, time), bool))
