"""Causal Transformer blocks shared by language models, with a decoding cache."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.models.blocks import EncoderBlock, Form
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.layers import KeysValues


class CausalStack(nn.Module):
    """Self-attention blocks in which positions attend to themselves and earlier ones.

    Attributes:
      depth: number of blocks.
      form: settings of the blocks.
      final_norm: whether a LayerNorm follows the last block.
      remat: recompute each block in the backward pass.
    """

    depth: int
    form: Form
    final_norm: bool
    remat: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        cls = EncoderBlock
        if self.remat:
            cls = nn.remat(cls, static_argnums=(3,))
        self.block = [cls(self.form) for _ in range(self.depth)]
        if self.final_norm:
            self.norm = nn.LayerNorm(1e-5, dtype=self.form.dtype)

    def __call__(
        self, x: Float[Array, "batch time width"], train: bool
    ) -> Float[Array, "batch time width"]:
        """Apply the blocks to all positions at once."""
        causal = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
        for block in self.block:
            x = block(x, causal, train)
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
        beams = []
        for block, past in zip(self.block, cache.beams, strict=True):
            x, past = block.step(x, past, cache.filled)
            beams.append(past)
        return self._last(x), Cache(tuple(beams), (), cache.filled + 1)

    def _last(self, x: Array) -> Array:
        return self.norm(x) if self.final_norm else x


def empty_cache(
    depth: int, form: Form, width: int, batch: int, length: int, beam: int = 1
) -> Cache:
    """Create an empty cache of a `CausalStack`.

    Args:
      depth: number of blocks.
      form: settings of the blocks.
      width: width of the model.
      batch: number of examples.
      length: number of allocated positions.
      beam: number of hypotheses per example.

    Returns:
      The cache.
    """
    shape = (batch, beam, form.heads, length, width // form.heads)
    empty = KeysValues(jnp.zeros(shape, form.dtype), jnp.zeros(shape, form.dtype))
    return Cache((empty,) * depth, (), jnp.int32(0))
