"""Encoder-decoder Transformer (Vaswani et al., 2017) as fairseq and BART build it.

Post-norm, sinusoidal positions, ReLU and one table for source, target and output by
default: fairseq's `transformer_iwslt_de_en`. Options lead to BART. Dropout stands after
both embeddings and after every sublayer; on attention weights, after activations and
around whole layers it has rates of its own.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.decoding.cache import Cache
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import DecoderBlock, EncoderBlock, Form, Rates
from rdrop_jax.models.embeddings import Embed
from rdrop_jax.models.layers import Dtype, KeysValues

SHARE = ("all", "decoder", "none")

# Tables and the output are cut over the vocabulary, the rest as layers say.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)(source_)?embedding", PartitionSpec("tensor", None)),
    (r"(^|/)output", PartitionSpec(None, "tensor")),
    (r"(^|/)logits_bias", PartitionSpec("tensor")),
    *layers.PARTITION_RULES,
)


class Size(NamedTuple):
    """Depths and widths."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    mlp_width: int


SIZES = {
    "transformer_iwslt_de_en": Size(6, 6, 512, 4, 1024),
    "transformer_vaswani_wmt_en_de_big": Size(6, 6, 1024, 16, 4096),
    "bart.base": Size(6, 6, 768, 12, 3072),
    "bart.large": Size(12, 12, 1024, 16, 4096),
}


class _Stack(nn.Module):
    """The blocks of one side, and a last norm if they are pre-norm."""

    block_class: type[nn.Module]
    depth: int
    form: Form
    remat: bool

    def setup(self) -> None:
        cls = self.block_class
        if self.remat:
            train = 3 if cls is EncoderBlock else 5
            cls = nn.remat(cls, static_argnums=(train,))
        self.block = [cls(self.form) for _ in range(self.depth)]
        if self.form.pre_norm:
            self.norm = nn.LayerNorm(1e-5, dtype=self.form.dtype)

    def __call__(self, x: Array, *args: Array | bool) -> Array:
        for block in self.block:
            x = block(x, *args)
        return self.last(x)

    def last(self, x: Array) -> Array:
        return self.norm(x) if self.form.pre_norm else x


class Seq2Seq(nn.Module):
    """A translator or summarizer.

    Attributes:
      vocab_size: of the target and its output, and of the source if all is shared.
      size: depths and widths.
      rates: of dropout at its sites.
      source_vocab_size: where the source has a table of its own.
      share: "all" for one table, "decoder" for one of target and output, "none".
      pre_norm: norms before the sublayers and after the last block.
      activation: "relu", "gelu" or "silu".
      positions: "fairseq" or "marian" sinusoids, or "learned".
      position_offset: row of the first position: 2 in BART's table.
      max_length: most positions of source and of target.
      scale_embedding: multiply token vectors by the square root of the width.
      embedding_norm: LayerNorm after the embeddings, as in BART.
      logits_bias: a bias of the output.
      dtype: of the activations; parameters and logits are float32.
      remat: recompute each block in the backward pass.
      masks: of dropout, "hash" or "bernoulli" as `rdrop_jax.dropout`.
    """

    vocab_size: int
    size: Size = SIZES["transformer_iwslt_de_en"]
    rates: Rates = Rates()
    source_vocab_size: int | None = None
    share: str = "all"
    pre_norm: bool = False
    activation: str = "relu"
    positions: str = "fairseq"
    position_offset: int = 0
    max_length: int = 1024
    scale_embedding: bool = True
    embedding_norm: bool = False
    logits_bias: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False
    masks: str = "hash"

    def setup(self) -> None:
        """Names the parameters."""
        if self.share not in SHARE:
            raise ValueError(f"share must be one of {SHARE}: found {self.share!r}")
        size, width = self.size, self.size.width
        normal = nn.initializers.normal(width**-0.5)
        table = (self.vocab_size, width)
        self.embedding = self.param("embedding", normal, table, jnp.float32)
        if self.share != "all":
            other = (self.source_vocab_size or self.vocab_size, width)
            self.source = self.param("source_embedding", normal, other, jnp.float32)
        if self.share == "none":
            self.output = self.param("output", normal, table[::-1], jnp.float32)
        if self.logits_bias:
            zeros = nn.initializers.zeros
            self.bias = self.param("logits_bias", zeros, table[:1], jnp.float32)
        self.source_embed, self.target_embed = self._embed(), self._embed()
        form = Form(
            size.heads,
            size.mlp_width,
            self.rates,
            self.pre_norm,
            self.activation,
            self.dtype,
            self.masks,
        )
        self.encoder = _Stack(EncoderBlock, size.encoder_layers, form, self.remat)
        self.decoder = _Stack(DecoderBlock, size.decoder_layers, form, self.remat)

    def _embed(self) -> Embed:
        return Embed(
            self.positions,
            self.size.width,
            self.max_length,
            self.position_offset,
            self.size.width**0.5 if self.scale_embedding else 1.0,
            self.embedding_norm,
            self.rates.dropout,
            self.dtype,
            self.masks,
        )

    def __call__(
        self,
        src: Int[Array, "batch source"],
        src_where: Bool[Array, "batch source"],
        inputs: Int[Array, "batch time"],
        *,
        train: bool,
        return_hidden: bool = False,
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token at every position of the target.

        Args:
          src: source ids, padded on the right.
          src_where: True on its tokens.
          inputs: target ids shifted to the right, so that they begin with BOS; padded
            on the right, where no position before looks.
          train: whether dropout is on; it then needs the stream "dropout".
          return_hidden: return what goes into the output, [batch, time, width].

        Returns:
          float32 logits.
        """
        memory = self.encode(src, src_where, train=train)
        hidden = self.decode_hidden(memory, src_where, inputs, train=train)
        return hidden if return_hidden else self.logits(hidden)

    def encode(
        self,
        src: Int[Array, "batch source"],
        src_where: Bool[Array, "batch source"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch source width"]:
        """The memory that a decoder looks at."""
        table = self.embedding if self.share == "all" else self.source
        x = self.source_embed(table, src, self._at(src), train)
        return self.encoder(x, src_where[:, None, None], train)

    def decode_hidden(
        self,
        memory: Float[Array, "batch source width"],
        src_where: Bool[Array, "batch source"],
        inputs: Int[Array, "batch time"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch time width"]:
        """What goes into the output, for a whole target."""
        x = self.target_embed(self.embedding, inputs, self._at(inputs), train)
        causal = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
        return self.decoder(x, causal, memory, src_where[:, None, None], train)

    def logits(
        self, hidden: Float[Array, "*rows width"]
    ) -> Float[Array, "*rows vocab"]:
        """Logits in float32, whatever the dtype of the activations."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        tied = self.share != "none"
        kernel = (self.embedding if tied else self.output).astype(self.dtype)
        y = jax.lax.dot_general(
            rows,
            kernel,
            (((1,), (1 if tied else 0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if self.logits_bias:
            y = y + self.bias[None]
        return y.reshape(*hidden.shape[:-1], self.vocab_size)

    def init_cache(
        self,
        memory: Float[Array, "batch source width"],
        src_where: Bool[Array, "batch source"],
        length: int,
        beam: int = 1,
    ) -> Cache:
        """An empty cache over a memory.

        Args:
          memory: of `encode`.
          src_where: True on the tokens of the source.
          length: positions it has room for; `rdrop_jax.decoding.cache.grow` adds more.
          beam: hypotheses per example.

        Returns:
          The cache, keys and values of the source included.
        """
        heads, width = self.size.heads, self.size.width
        shape = (len(memory), beam, heads, length, width // heads)
        empty = KeysValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        known = tuple(block.keys_values(memory) for block in self.decoder.block)
        return Cache((empty,) * len(known), (known, src_where), jnp.int32(0))

    def decode_step(
        self, tokens: Int[Array, "batch beam"], cache: Cache
    ) -> tuple[Float[Array, "batch beam vocab"], Cache]:
        """Logits of the next token of every hypothesis; dropout is off.

        Args:
          tokens: the last token of each, BOS at first.
          cache: of the tokens before.

        Returns:
          Logits and the cache with these tokens.
        """
        known, src_where = cache.shared
        x = self.target_embed(self.embedding, tokens, cache.filled[None, None], False)
        beams = []
        for block, past, memory in zip(
            self.decoder.block, cache.beams, known, strict=True
        ):
            x, past = block.step(x, past, cache.filled, memory, src_where)
            beams.append(past)
        logits = self.logits(self.decoder.last(x))
        return logits, Cache(tuple(beams), cache.shared, cache.filled + 1)

    def _at(self, tokens: Array) -> Array:
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"max_length is {self.max_length}: found {tokens.shape[1]} positions"
            )
        return jnp.arange(tokens.shape[1])[None]
