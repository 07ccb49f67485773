"""BERT (Devlin et al., 2019), RoBERTa (Liu et al., 2019), MPNet, DeBERTa; heads.

Post-norm, erf GELU, learned positions; MPNet adds a bias for relative positions to the
scores of every block, and DeBERTa has relative positions alone. Dropout is applied
after the embedding, on attention weights, after the attention output and after the MLP;
DeBERTa also drops its embeddings of distances in every block. As published, the heads
of BERT and DeBERTa add dropout before the last layer, those of RoBERTa and MPNet before
each of their two layers. That of ModernBERT is as BERT's, with a LayerNorm.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models.blocks import encoder_block
from rdrop_jax.models.embeddings import Keep, cut, token_positions, without_cut
from rdrop_jax.models.layers import Attention, Dense, Dropout, Dtype, gelu, recomputed
from rdrop_jax.models.modernbert import ModernEncoder
from rdrop_jax.models.relative import (
    MPNET_BUCKETS,
    DisentangledAttention,
    mpnet_bias,
)
from rdrop_jax.models.sizes import Size

SIZES = {
    "mini": Size(2, 128, 4, 256),
    "MiniLM-L6": Size(6, 384, 12, 1536),
    "base": Size(12, 768, 12, 3072),
    "large": Size(24, 1024, 16, 4096),
}
# LayerNorm epsilon of the published models.
NORM_EPS = {
    "bert": 1e-12,
    "roberta": 1e-5,
    "xlm-roberta": 1e-5,
    "mpnet": 1e-5,
    "deberta-v2": 1e-7,
    "modernbert": 1e-5,
}
# Id of the padding token.
PAD_ID = {
    "bert": 0,
    "roberta": 1,
    "xlm-roberta": 1,
    "mpnet": 1,
    "deberta-v2": 0,
    "modernbert": 50283,
}
# Rows of the table of token types.
NUM_TYPES = {"bert": 2, "roberta": 1, "xlm-roberta": 1, "mpnet": 0, "deberta-v2": 0}
_INIT = nn.initializers.normal(0.02)


class BertBlock(nn.Module):
    """Post-norm encoder block.

    Attributes:
      size: depth and widths of the encoder.
      dropout: dropout rate after attention and MLP.
      attention_dropout: dropout rate on attention weights.
      norm_eps: epsilon of the LayerNorms.
      dtype: dtype of the activations.
      masks: dropout masks, "hash" or "bernoulli".
      fused: see `Attention`.
      far: distance from which DeBERTa's embeddings are the same; 0 for other encoders.
    """

    size: Size
    dropout: float
    attention_dropout: float
    norm_eps: float
    dtype: Dtype
    masks: str
    fused: bool
    far: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time width"],
        where: Bool[Array, "batch 1 1 time"],
        train: bool,
        relative: Float[Array, "..."] | None = None,
    ) -> Float[Array, "batch time width"]:
        make: Any = Attention
        if self.far:
            make = partial(DisentangledAttention, max_positions=self.far)
        attention = make(
            self.size.heads,
            self.attention_dropout,
            self.dropout,
            self.dtype,
            self.masks,
            _INIT,
            _INIT,
            fused=self.fused,
            name="attention",
        )
        h = x + attention(x, x, where=where, relative=relative, train=train)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(h)
        h = Dense(self.size.mlp_width, self.dtype, _INIT, name="mlp_in")(x)

        def second(block: nn.Module, h: Array) -> Array:
            del block  # `nn.remat` passes the module
            return Dense(self.size.width, self.dtype, _INIT, name="mlp_out")(gelu(h))

        h = recomputed(second, self.dtype)(self, h)
        h = x + Dropout(self.dropout, self.masks)(h, train=train)
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(h)


class Encoder(nn.Module):
    """Encoder from tokens to hidden states.

    Attributes:
      kind: "bert", "roberta", "xlm-roberta", which has the layout of RoBERTa, "mpnet"
        or "deberta-v2".
      size: depth and widths.
      vocab_size: number of rows of the token table.
      max_positions: maximum input length in tokens. DeBERTa reads longer inputs, but
        does not distinguish greater distances.
      num_types: number of rows of the token type table; 0 for no types.
      pad_id: id of the padding token; all but BERT count positions from ``pad_id + 1``.
      norm_eps: epsilon of the LayerNorms.
      dropout: dropout rate after the embedding, attention and MLPs.
      attention_dropout: dropout rate on attention weights.
      dtype: dtype of the activations.
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
      position_buckets: half of the rows of DeBERTa's table of distances.
      conv_kernel: width of the convolution of DeBERTa-v2, odd; 0 for none.
    """

    kind: str
    size: Size
    vocab_size: int
    max_positions: int = 512
    num_types: int = 2
    pad_id: int = 0
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False
    position_buckets: int = 256
    conv_kernel: int = 0

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
        far = self.max_positions if self.kind == "deberta-v2" else 0
        if not far:
            token_positions(tokens, self.max_positions)
        x = self._embed(tokens, types, where).astype(self.dtype)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = cut(Dropout(self.dropout, self.masks)(x, train=train), keep)
        where = without_cut(where, keep)  # no token attends to these
        relative, start = self._relative(tokens.shape[1]), x
        block = encoder_block(self, BertBlock)
        for i in range(self.size.layers):
            make = block(far, name=f"block_{i}")
            x = make(x, where[:, None, None], train, relative)
            if i == 0 and self.conv_kernel:
                x = self._convolved(start, x, where, train)
        return x

    def _convolved(
        self,
        start: Float[Array, "batch time width"],
        x: Float[Array, "batch time width"],
        where: Bool[Array, "batch time"],
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Add a convolution of the embeddings to the first block's output."""
        conv = nn.Conv(
            self.size.width,
            (self.conv_kernel,),
            padding=self.conv_kernel // 2,
            dtype=self.dtype,
            kernel_init=_INIT,
            name="conv",
        )
        zero = jnp.zeros((), self.dtype)
        h = jnp.where(
            where[..., None], conv(jnp.where(where[..., None], start, zero)), zero
        )
        h = gelu(Dropout(self.dropout, self.masks)(h, train=train))
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="conv_norm")(x + h)

    def _relative(self, time: int) -> Float[Array, "..."] | None:
        """Make the argument ``relative`` of the attention of all blocks."""
        if self.kind == "mpnet":
            shape = (MPNET_BUCKETS, self.size.heads)
            table = self.param("relative_bias", _INIT, shape, jnp.float32)
            return mpnet_bias(table, time)
        if self.kind == "deberta-v2":
            shape = (2 * self.position_buckets, self.size.width)
            table = self.param("relative", _INIT, shape, jnp.float32)
            norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="relative_norm")
            return norm(table)
        return None

    def _embed(
        self,
        tokens: Int[Array, "batch time"],
        types: Int[Array, "batch time"],
        where: Bool[Array, "batch time"],
    ) -> Float[Array, "batch time width"]:
        """Sum token, position and type embeddings in float32."""

        def table(name: str, rows: int) -> Array:
            return self.param(name, _INIT, (rows, self.size.width), jnp.float32)

        x = table("tokens", self.vocab_size)[tokens]
        if self.kind == "deberta-v2":
            return x
        if self.kind != "bert":
            positions = table("positions", self.max_positions + self.pad_id + 1)
            x = x + positions[positions_after(self.pad_id, where)]
        else:
            x = x + table("positions", self.max_positions)[None, : tokens.shape[1]]
        if not self.num_types:
            return x
        # A matrix product: the gradient of a lookup would scatter-add into two rows.
        chosen = jax.nn.one_hot(types, self.num_types, dtype=jnp.float32)
        return x + chosen @ table("types", self.num_types)


def positions_after(
    pad_id: int, where: Bool[Array, "batch time"]
) -> Int[Array, "batch time"]:
    """Return RoBERTa positions: from ``pad_id + 1`` for tokens, ``pad_id`` for padding.

    Example:
      >>> import jax.numpy as jnp
      >>> positions_after(1, jnp.array([[True, True, False]])).tolist()
      [[2, 3, 1]]
    """
    kept = where.astype(jnp.int32)
    return jnp.cumsum(kept, axis=1) * kept + pad_id


def mean_of(
    x: Float[Array, "batch time width"], where: Bool[Array, "batch time"]
) -> Float[Array, "batch width"]:
    """Return the mean over tokens where ``where`` is True, computed in float32."""
    kept = where.astype(jnp.float32)
    total = jnp.einsum("btd,bt->bd", x.astype(jnp.float32), kept)
    count = jnp.maximum(jnp.sum(kept, axis=1, keepdims=True), 1.0)
    return (total / count).astype(x.dtype)


class Classifier(nn.Module):
    """Encoder with a head on its first token or on every token.

    Attributes:
      encoder: the encoder.
      outputs: number of classes or labels, or 1 for regression.
      per_token: whether every token has outputs, as in token classification.
      pooling: input of the head of ModernBERT, "cls" for the first token or "mean".
    """

    encoder: Encoder | ModernEncoder
    outputs: int
    per_token: bool = False
    pooling: str = "cls"

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        types: Int[Array, "batch time"],
        where: Bool[Array, "batch time"],
        keep: Keep = None,
        *,
        train: bool,
    ) -> Float[Array, "batch *time outputs"]:
        """Compute logits; the last axis is kept even if ``outputs`` is 1.

        Args:
          tokens: token ids.
          types: token type, 0 for the first text or 1 for the second.
          where: False on padding.
          keep: False on cut embeddings, of tokens or features; None cuts none.
          train: whether dropout is on.

        Returns:
          Logits [batch, outputs], or [batch, time, outputs] per token.
        """
        e = self.encoder
        x = e(tokens, types, where, keep, train=train)

        def drop(h: Array) -> Array:
            return Dropout(e.dropout, e.masks)(h, train=train)

        if e.kind == "modernbert":
            if not self.per_token:
                x = mean_of(x, where) if self.pooling == "mean" else x[:, 0]
            dense = Dense(e.size.width, e.dtype, _INIT, use_bias=False, name="pooler")
            norm = nn.LayerNorm(
                e.norm_eps, dtype=e.dtype, use_bias=False, name="pooler_norm"
            )
            x = norm(gelu(dense(x)))
        elif not self.per_token:
            x = x[:, 0]
            x = x if e.kind in ("bert", "deberta-v2") else drop(x)
            x = Dense(e.size.width, e.dtype, _INIT, name="pooler")(x)
            x = gelu(x) if e.kind == "deberta-v2" else jnp.tanh(x)
        # Rounding logits to bfloat16 would cause ties, and coarse regression answers.
        return Dense(self.outputs, jnp.float32, _INIT, name="head")(drop(x))
