"""What language models have in common: causal blocks, with a cache to generate."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.decoding.cache import Cache
from rdrop_jax.models.blocks import EncoderBlock, Form
from rdrop_jax.models.layers import KeysValues


class CausalStack(nn.Module):
    """Blocks of self-attention in which a position looks at itself and before.

    Attributes:
      depth: number of blocks.
      form: of the blocks.
      final_norm: a LayerNorm after the last block.
      remat: recompute each block in the backward pass.
    """

    depth: int
    form: Form
    final_norm: bool
    remat: bool = False

    def setup(self) -> None:
        """Names the parameters."""
        cls = EncoderBlock
        if self.remat:
            cls = nn.remat(cls, static_argnums=(3,))
        self.block = [cls(self.form) for _ in range(self.depth)]
        if self.final_norm:
            self.norm = nn.LayerNorm(1e-5, dtype=self.form.dtype)

    def __call__(
        self, x: Float[Array, "batch time width"], train: bool
    ) -> Float[Array, "batch time width"]:
        """All positions at once."""
        causal = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
        for block in self.block:
            x = block(x, causal, train)
        return self._last(x)

    def step(
        self, x: Float[Array, "batch beam width"], cache: Cache
    ) -> tuple[Float[Array, "batch beam width"], Cache]:
        """The next position, dropout off.

        Args:
          x: one vector per hypothesis.
          cache: of the positions before.

        Returns:
          An array like x, and the cache with this position.
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
    """A cache of a `CausalStack` that holds no position yet.

    Args:
      depth: blocks of the stack.
      form: of its blocks.
      width: of its vectors.
      batch: examples.
      length: positions it has room for.
      beam: hypotheses per example.

    Returns:
      The cache.
    """
    shape = (batch, beam, form.heads, length, width // form.heads)
    empty = KeysValues(jnp.zeros(shape, form.dtype), jnp.zeros(shape, form.dtype))
    return Cache((empty,) * depth, (), jnp.int32(0))
