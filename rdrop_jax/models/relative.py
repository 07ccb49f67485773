"""Relative positions of MPNet (Song et al., 2020) and DeBERTa (He et al., 2021)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models.layers import Attention, Dropout

# Rows of MPNet's table of biases, and the distance from which the last row is used.
MPNET_BUCKETS, _MPNET_FAR = 32, 128


def mpnet_buckets(distances: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Map distances, key minus query, to rows of MPNet's table of biases.

    Example:
      >>> mpnet_buckets(np.array([-200, -9, -1, 0, 1, 9])).tolist()
      [15, 8, 1, 0, 17, 24]
    """
    half, far = MPNET_BUCKETS // 2, np.abs(distances)
    exact = half // 2
    steps = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(math.log(_MPNET_FAR / exact)) * np.float32(half - exact)
    large = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, large)


def deberta_buckets(
    distances: Int[np.ndarray, "..."], buckets: int, max_positions: int
) -> Int[np.ndarray, "..."]:
    """Map distances, query minus key, to rows of DeBERTa's table of embeddings.

    Args:
      distances: distances between positions.
      buckets: half of the number of rows; up to half of it, distances are exact.
      max_positions: distance from which the last row is used.

    Example:
      >>> deberta_buckets(np.array([-500, -200, 0, 128, 129]), 256, 512).tolist()
      [2, 87, 256, 384, 385]
    """
    middle, far = buckets // 2, np.abs(distances)
    steps = np.log(np.maximum(far, middle).astype(np.float32) / np.float32(middle))
    steps = steps / np.log(np.float32((max_positions - 1) / middle))
    large = np.ceil(steps * np.float32(middle - 1)).astype(np.int64) + middle
    found = np.where(far <= middle, distances, np.sign(distances) * large)
    return np.clip(found + buckets, 0, 2 * buckets - 1)


def spread(x: Float[Array, "... time distances"]) -> Float[Array, "... time time"]:
    """Spread values by distance over pairs of positions.

    Args:
      x: values of each position for the distances ``1 - time`` to ``time - 1``.

    Returns:
      Values whose entry i, j is that of position i for the distance j - i. It takes
      padding and reshaping alone, no gather.

    Example:
      >>> spread(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
      [[2.0, 3.0], [4.0, 5.0]]
    """
    *before, time, distances = x.shape
    x = jnp.pad(x, [(0, 0)] * (len(before) + 1) + [(0, 1)])
    flat = x.reshape(*before, -1)[..., time - 1 : time - 1 + time * distances]
    return flat.reshape(*before, time, distances)[..., :time]


def mpnet_bias(
    table: Float[Array, "buckets heads"], time: int
) -> Float[Array, "1 heads time time"]:
    """Look up the bias of the scores of each head, for all pairs of positions."""
    rows = mpnet_buckets(np.arange(1 - time, time))
    values = jnp.broadcast_to(
        table[rows].T[None, :, None], (1, table.shape[1], time, 2 * time - 1)
    )
    return spread(values)


class DisentangledAttention(Attention):
    """DeBERTa's self-attention, whose scores have three terms.

    They are products of contents, of a query with the embedding of a distance, and of a
    key with it. The projections of contents also project the embeddings.

    Attributes:
      max_positions: distance from which embeddings are the same.
    """

    max_positions: int = 512

    def setup(self) -> None:
        """Create parameters and submodules."""
        super().setup()
        self.drop_relative = Dropout(self.out_dropout, self.masks)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        context: Float[Array, "batch time width"],
        *,
        where: Bool[Array, "#batch 1 #time time"] | None = None,
        relative: Float[Array, "rows width"] | None = None,
        train: bool,
    ) -> Float[Array, "batch time width"]:
        """Attend from every position of x to the context, which is x.

        Args:
          x: inputs of the queries.
          context: inputs of the keys and values.
          where: attention mask; True where a position may attend.
          relative: embeddings of the distances, see `deberta_buckets`.
          train: whether dropout is on.

        Returns:
          An array like x.
        """
        assert relative is not None
        time = x.shape[1]
        distances = np.arange(1 - time, time)
        rows = deberta_buckets(distances, relative.shape[0] // 2, self.max_positions)
        low = int(rows.min())
        near = self.drop_relative(relative[low : int(rows.max()) + 1], train=train)
        share = jnp.asarray(3**-0.5, self.dtype)  # of each of the three terms
        query, key, value = self.query(x) * share, self.key(context), self.value(x)
        of_keys = self.key(near[None])[0][rows[::-1] - low]
        of_queries = self.query(near[None])[0][rows - low] * share
        to_positions = spread(jnp.einsum("bthd,rhd->bhtr", query, of_keys))
        from_positions = spread(jnp.einsum("bshd,rhd->bhsr", key, of_queries))
        bias = to_positions + from_positions.swapaxes(2, 3)
        bias = bias / jnp.asarray(math.sqrt(query.shape[-1]), bias.dtype)
        return self.mix(query, key, value, where, bias, train)
