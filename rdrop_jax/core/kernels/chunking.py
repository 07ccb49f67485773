"""Chunk sizes of all losses, and division of rows into chunks."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from rdrop_jax.core.meshes import platform


class ChunkSizes(NamedTuple):
    """Chunk sizes on one backend.

    Attributes:
      softmax_logits: maximum logits per pass and device in `rdrop_loss`.
      linear_logits: maximum logits per pass in `large_vocab_rdrop_loss`.
      adaptive_rows: positions in `adaptive_rdrop_loss`.
      softmax_whole: maximum logits that `rdrop_loss` computes without a loop.
      softmax_rows: minimum positions in `rdrop_loss`.
      linear_rows: minimum and maximum positions in `large_vocab_rdrop_loss`.
      linear_whole: maximum logits of such a chunk without a second, inner loop.
      kernel_whole: vocabulary size above which `large_vocab_rdrop_loss` accumulates
        the kernel gradient in blocks of tokens.
      kernel_block: tokens per block.
      log_probs: maximum log-probabilities in `rdrop_jax.models.outputs.nll`.
    """

    softmax_logits: int
    linear_logits: int
    adaptive_rows: int
    softmax_whole: int = 2**22
    softmax_rows: int = 8
    linear_rows: tuple[int, int] = (64, 256)
    linear_whole: int = 2**22
    kernel_whole: int = 100_000
    kernel_block: int = 16_384
    log_probs: int = 2**23


_UNLIMITED = 2**62
# On CPU, a chunk fits in cache. GPUs fuse the inner loop and the sum of gradients
# into a few kernels; on TPUs the inner loop keeps intermediate arrays on the chip.
SIZES = {
    "cpu": ChunkSizes(320_000, 2**23, 64),
    "gpu": ChunkSizes(
        10_000_000, 2**25, 256, linear_whole=_UNLIMITED, kernel_whole=_UNLIMITED
    ),
    "tpu": ChunkSizes(10_000_000, 2**25, 256, kernel_whole=_UNLIMITED),
}


def sizes() -> ChunkSizes:
    """Return the chunk sizes of the current platform."""
    return SIZES.get(platform(), SIZES["gpu"])


def softmax_rows(positions: int, classes: int, *, linear: bool = False) -> int:
    """Return the positions per chunk of `rdrop_loss`; chunks have about equal size.

    ``linear`` is for the inner loop of `large_vocab_rdrop_loss`.
    """
    limit = sizes()
    whole = limit.linear_whole if linear else limit.softmax_whole
    if positions * classes <= whole:
        return positions
    rows = max(limit.softmax_logits // classes, limit.softmax_rows)
    return -(-positions // max(positions // rows, 1))


def linear_rows(vocab: int) -> int:
    """Return the positions per chunk of `large_vocab_rdrop_loss`, a power of 2."""
    least, most = sizes().linear_rows
    power = (sizes().linear_logits // vocab).bit_length() - 1
    return min(max(1 << max(power, 0), least), most)


def even_chunks(rows: int, size: int) -> tuple[int, int]:
    """Return the number of chunks of at most ``size`` rows, and their equal size."""
    count = max(-(-rows // size), 1)
    return count, -(-rows // count)


def chunked(
    x: Shaped[Array, "..."], count: int, size: int, axis: int = 0
) -> Shaped[Array, "chunks ..."]:
    """Divide an axis into chunks, which become the first axis; padding is zero."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)
