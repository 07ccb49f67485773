"""ModernBERT (Warner et al., 2024): rotary positions, local attention, gated MLPs.

Pre-norm without biases; the first block has no norm before its attention. Dropout is
applied after the embedding, on attention weights, after the attention output at the
same rate, and before the last layer of an MLP. Published files have rates of 0.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models.blocks import encoder_block
from rdrop_jax.models.embeddings import Keep, cut, token_positions, without_cut
from rdrop_jax.models.layers import Attention, Dense, Dropout, Dtype, gelu
from rdrop_jax.models.sizes import Size

_INIT = nn.initializers.normal(0.02)


class Pattern(NamedTuple):
    """Layers that attend to all tokens or to near ones, and their rotary positions.

    Attributes:
      global_every: the first of so many layers attends to all tokens.
      local_window: tokens that a token of the other layers attends to, half of them on
        each side, in addition to itself.
      global_theta: base of the wavelengths of positions in layers of the first type.
      local_theta: the same for the other layers.
    """

    global_every: int = 3
    local_window: int = 128
    global_theta: float = 160000.0
    local_theta: float = 10000.0


def rotated(
    x: Float[Array, "batch time heads head"], theta: float
) -> Float[Array, "batch time heads head"]:
    """Rotate pairs of features by angles proportional to the position, in float32.

    Feature i is paired with feature i + head / 2.

    Args:
      x: queries or keys.
      theta: base of the wavelengths.
    """
    time, half = x.shape[1], x.shape[3] // 2
    frequencies = np.float32(theta) ** (-np.arange(half, dtype=np.float32) / half)
    angles = np.arange(time, dtype=np.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class RotaryAttention(Attention):
    """Self-attention with rotary positions.

    Attributes:
      theta: base of the wavelengths.
    """

    theta: float = 10000.0

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        context: Float[Array, "batch time width"],
        *,
        where: Bool[Array, "#batch 1 #time time"] | None = None,
        relative: Float[Array, "..."] | None = None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Attend from every position of x to the context, which is x."""
        query, key = rotated(self.query(x), self.theta), self.key(context)
        key, value = rotated(key, self.theta), self.value(context)
        return self.mix(query, key, value, where, relative, train)


class ModernBlock(nn.Module):
    """Pre-norm block with a gated MLP.

    Attributes:
      size: depth and widths of the encoder.
      dropout: dropout rate in the MLP.
      attention_dropout: dropout rate on attention weights and on the attention output.
      norm_eps: epsilon of the LayerNorms.
      dtype: dtype of the activations.
      masks: dropout masks, "hash" or "bernoulli".
      fused: see `Attention`.
      theta: see `RotaryAttention`.
      first: whether the block has no norm before its attention.
    """

    size: Size
    dropout: float
    attention_dropout: float
    norm_eps: float
    dtype: Dtype
    masks: str
    fused: bool
    theta: float
    first: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "batch 1 #time time"],
        train: bool,
    ) -> Float[Array, "batch time width"]:
        norm = partial(nn.LayerNorm, self.norm_eps, dtype=self.dtype, use_bias=False)
        dense = partial(Dense, dtype=self.dtype, kernel_init=_INIT, use_bias=False)
        attention = RotaryAttention(
            self.size.heads,
            self.attention_dropout,
            self.attention_dropout,
            self.dtype,
            self.masks,
            _INIT,
            _INIT,
            use_bias=False,
            fused=self.fused,
            theta=self.theta,
            name="attention",
        )
        h = x if self.first else norm(name="attention_norm")(x)
        x = x + attention(h, h, where=where, train=train)
        h = norm(name="mlp_norm")(x)
        opened = gelu(dense(self.size.mlp_width, name="mlp_in")(h))
        h = opened * dense(self.size.mlp_width, name="mlp_gate")(h)
        h = Dropout(self.dropout, self.masks)(h, train=train)
        return x + dense(self.size.width, name="mlp_out")(h)


class ModernEncoder(nn.Module):
    """Encoder from tokens to hidden states.

    Attributes:
      size: depth and widths.
      vocab_size: number of rows of the token table.
      max_positions: maximum input length in tokens.
      pad_id: id of the padding token.
      norm_eps: epsilon of the LayerNorms.
      dropout: dropout rate after the embedding and in the MLPs.
      attention_dropout: dropout rate on attention weights and attention outputs.
      dtype: dtype of the activations.
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
      pattern: types of the layers.
      kind: value of model_type.
      num_types: number of token types, none.
    """

    size: Size
    vocab_size: int
    max_positions: int = 8192
    pad_id: int = 50283
    norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False
    pattern: Pattern = Pattern()
    kind: str = "modernbert"
    num_types: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        types: Int[Array, "batch time"],
        where: Bool[Array, "batch time"],
        keep: Keep = None,
        *,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        del types
        at = token_positions(tokens, self.max_positions)
        norm = partial(nn.LayerNorm, self.norm_eps, dtype=self.dtype, use_bias=False)
        shape = (self.vocab_size, self.size.width)
        table = self.param("tokens", _INIT, shape, jnp.float32)
        x = norm(name="embedding_norm")(table[tokens])
        x = cut(Dropout(self.dropout, self.masks)(x, train=train), keep)
        where = without_cut(where, keep)  # no token attends to these
        p = self.pattern
        near = jnp.abs(at.T - at) <= p.local_window // 2
        anywhere = where[:, None, None]
        nearby = anywhere & near[None, None]
        # A window whose tokens are all cut would spread attention over padding.
        nearby |= (at == at.T)[None, None] & ~nearby.any(-1, keepdims=True)
        block = encoder_block(self, ModernBlock)
        for i in range(self.size.layers):
            everywhere = i % p.global_every == 0
            x = block(
                p.global_theta if everywhere else p.local_theta,
                i == 0,
                name=f"block_{i}",
            )(x, anywhere if everywhere else nearby, train)
        return norm(name="final_norm")(x)
