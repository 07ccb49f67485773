"""Encoder and decoder blocks, post-norm as published or pre-norm."""

from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models.layers import Attention, Dtype, KeysValues, LayerDrop, Mlp


class Rates(NamedTuple):
    """Dropout rates by site.

    Attributes:
      dropout: rate after the embedding and after every sublayer.
      attention: rate on attention weights.
      activation: rate after the activation of an MLP.
      layer: rate of per-example LayerDrop.
    """

    dropout: float = 0.1
    attention: float = 0.0
    activation: float = 0.0
    layer: float = 0.0


class Form(NamedTuple):
    """Settings shared by all blocks of a model."""

    heads: int
    mlp_width: int
    rates: Rates
    pre_norm: bool
    activation: str
    dtype: Dtype
    masks: str


class _Block(nn.Module):
    """Sublayers with a residual connection around each.

    Attributes:
      form: settings shared by all blocks.
    """

    form: Form

    def _attention(self) -> Attention:
        xavier = nn.initializers.variance_scaling
        form = self.form
        return Attention(
            form.heads,
            form.rates.attention,
            form.rates.dropout,
            form.dtype,
            form.masks,
            xavier(0.5, "fan_avg", "uniform"),  # fairseq's gain of 1 / sqrt(2)
            xavier(1.0, "fan_avg", "uniform"),
        )

    def _mlp(self) -> Mlp:
        form = self.form
        return Mlp(
            form.mlp_width,
            form.rates.dropout,
            form.dtype,
            form.masks,
            form.rates.activation,
            form.activation,
            nn.initializers.xavier_uniform(),
        )

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(1e-5, dtype=self.form.dtype)

    def _before(self, x: Array, norm: nn.Module) -> Array:
        return norm(x) if self.form.pre_norm else x

    def _after(self, x: Array, norm: nn.Module) -> Array:
        return x if self.form.pre_norm else norm(x)


class EncoderBlock(_Block):
    """Self-attention and MLP."""

    def setup(self) -> None:
        """Create parameters and submodules."""
        self.attention, self.attention_norm = self._attention(), self._norm()
        self.mlp, self.mlp_norm = self._mlp(), self._norm()
        self.drop = LayerDrop(self.form.rates.layer, self.form.masks)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "#batch 1 #time time"] | None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Apply the block; ``where`` is True where a position may attend."""
        start = x
        h = self._before(x, self.attention_norm)
        x = x + self.attention(h, h, where=where, train=train)
        x = self._after(x, self.attention_norm)
        x = x + self.mlp(self._before(x, self.mlp_norm), train=train)
        return self.drop(start, self._after(x, self.mlp_norm), train=train)

    def step(
        self,
        x: Float[Array, "batch beam width"],
        past: KeysValues,
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "batch beam width"], KeysValues]:
        """Apply the block to position ``index`` of every beam, causal, dropout off."""
        h = self._before(x, self.attention_norm)
        h, past = self.attention.step(h, past, index)
        x = self._after(x + h, self.attention_norm)
        x = x + self.mlp(self._before(x, self.mlp_norm), train=False)
        return self._after(x, self.mlp_norm), past


class DecoderBlock(_Block):
    """Causal self-attention, attention to the source, MLP."""

    def setup(self) -> None:
        """Create parameters and submodules."""
        self.attention, self.attention_norm = self._attention(), self._norm()
        self.cross, self.cross_norm = self._attention(), self._norm()
        self.mlp, self.mlp_norm = self._mlp(), self._norm()
        self.drop = LayerDrop(self.form.rates.layer, self.form.masks)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "#batch 1 time time"],
        memory: Float[Array, "batch source width"],
        memory_where: Bool[Array, "batch 1 1 source"],
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Apply the block to a full target."""
        start = x
        h = self._before(x, self.attention_norm)
        x = x + self.attention(h, h, where=where, train=train)
        x = self._after(x, self.attention_norm)
        h = self._before(x, self.cross_norm)
        x = x + self.cross(h, memory, where=memory_where, train=train)
        x = self._after(x, self.cross_norm)
        x = x + self.mlp(self._before(x, self.mlp_norm), train=train)
        return self.drop(start, self._after(x, self.mlp_norm), train=train)

    def step(
        self,
        x: Float[Array, "batch beam width"],
        past: KeysValues,
        index: Int[Array, ""],
        memory: KeysValues,
        memory_where: Bool[Array, "batch source"],
    ) -> tuple[Float[Array, "batch beam width"], KeysValues]:
        """Apply the block to position ``index`` of every beam; see `Attention.step`."""
        h = self._before(x, self.attention_norm)
        h, past = self.attention.step(h, past, index)
        x = self._after(x + h, self.attention_norm)
        h = self._before(x, self.cross_norm)
        x = x + self.cross.look(h, memory, memory_where)
        x = self._after(x, self.cross_norm)
        x = x + self.mlp(self._before(x, self.mlp_norm), train=False)
        return self._after(x, self.mlp_norm), past

    def keys_values(self, memory: Float[Array, "batch source width"]) -> KeysValues:
        """Compute keys and values of the source, for `step`."""
        return self.cross.keys_values(memory)
