"""Token and position embeddings."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models.layers import Dropout, Dtype

POSITIONS = ("fairseq", "marian", "learned")
# Embeddings that are kept, of some tokens or features; the rest becomes 0.
Keep = Bool[Array, "batch #time #width"] | None


def sinusoids(length: int, width: int, kind: str) -> Float[np.ndarray, "length width"]:
    """Sinusoidal position embeddings: sines of every frequency, then cosines.

    Frequency i of n = width / 2 is ``10000 ** (-i / (n - 1))`` in fairseq's layout and
    ``10000 ** (-i / n)`` in Marian's.

    Args:
      length: number of positions.
      width: embedding width, even.
      kind: "fairseq" or "marian".

    Returns:
      One row per position.

    Raises:
      ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(f"width must be even for sinusoids: found {width}")
    half = width // 2
    last = max(half - 1, 1) if kind == "fairseq" else half
    frequencies = np.exp(np.arange(half) * (-math.log(10000.0) / last))
    angles = np.arange(length)[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def token_positions(
    tokens: Int[Array, "batch time"], maximum: int
) -> Int[Array, "1 time"]:
    """Return the positions of tokens.

    Raises:
      ValueError: more than ``maximum`` positions.
    """
    time = tokens.shape[1]
    if time > maximum:
        raise ValueError(f"tokens: expected at most {maximum} positions, found {time}")
    return jnp.arange(time)[None]


class Positions(nn.Module):
    """Position embeddings.

    Attributes:
      kind: "learned", or the sinusoids "fairseq" or "marian".
      width: embedding width.
      length: maximum number of positions.
      offset: table row of the first position: 2 in BART and fairseq, 0 in Marian.
      dtype: dtype of the result.
    """

    kind: str
    width: int
    length: int
    offset: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, at: Int[Array, "..."]) -> Float[Array, "... width"]:
        if self.kind not in POSITIONS:
            raise ValueError(
                f"positions must be one of {POSITIONS}: found {self.kind!r}"
            )
        rows = self.length + self.offset
        table: Array
        if self.kind == "learned":
            init = nn.initializers.normal(0.02)
            table = self.param("table", init, (rows, self.width), jnp.float32)
        else:
            table = jnp.asarray(sinusoids(rows, self.width, self.kind))
        return jnp.take(table, at + self.offset, axis=0, mode="clip").astype(self.dtype)


def cut(
    x: Float[Array, "batch time width"], keep: Keep
) -> Float[Array, "batch time width"]:
    """Set embeddings to 0 where ``keep`` is False; None keeps all."""
    return x if keep is None else jnp.where(keep, x, jnp.zeros((), x.dtype))


def without_cut(
    where: Bool[Array, "batch time"], keep: Keep
) -> Bool[Array, "batch time"]:
    """Return ``where``, False also on tokens of which ``keep`` keeps no feature."""
    return where if keep is None else where & jnp.any(keep, axis=-1)


class Embed(nn.Module):
    """Scaled token embeddings plus positions, an optional LayerNorm, and dropout.

    The token embedding table is an argument, so source, target and output can share it.

    Attributes:
      positions: type of position embeddings, see `Positions`.
      width: embedding width.
      max_length: maximum number of positions.
      offset: table row of the first position, see `Positions`.
      scale: factor of the token embeddings.
      norm: apply a LayerNorm before the dropout, as in BART.
      dropout: dropout rate.
      dtype: dtype of the activations.
      masks: see `Dropout`.
    """

    positions: str
    width: int
    max_length: int
    offset: int
    scale: float
    norm: bool
    dropout: float
    dtype: Dtype
    masks: str

    @nn.compact
    def __call__(
        self,
        table: Float[Array, "vocab width"],
        tokens: Int[Array, "batch time"],
        at: Int[Array, "#batch #time"],
        train: bool,
        keep: Keep = None,
    ) -> Float[Array, "batch time width"]:
        x = jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype) * self.scale
        x = cut(x, keep)
        place = Positions(
            self.positions,
            self.width,
            self.max_length,
            self.offset,
            self.dtype,
            name="positions",
        )
        x = x + place(at)
        if self.norm:
            x = nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)
        return Dropout(self.dropout, self.masks)(x, train=train)


def make_embed(module: Any, *, norm: bool = False) -> Embed:
    """Make the `Embed` of a decoder or an encoder-decoder, in its ``setup``."""
    width = module.size.width
    return Embed(
        module.positions,
        width,
        module.max_length,
        module.position_offset,
        width**0.5 if module.scale_embedding else 1.0,
        norm,
        module.rates.dropout,
        module.dtype,
        module.masks,
    )
