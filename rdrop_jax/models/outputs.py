"""Probabilities from the factored outputs of language models."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdrop_jax.core.kernels.chunking import chunked, sizes
from rdrop_jax.core.large_vocab import LinearOutput


class AdaptiveOutput(NamedTuple):
    """Output of a model with an adaptive softmax: factors of its logits.

    With `forward_passes`, ``out_axes=AdaptiveOutput(0, None)`` keeps one set of
    kernels.

    Attributes:
      hidden: hidden states of the head and of each tail, [..., cluster width].
      kernels: kernel of the head [tokens + tails, width] and each tail [tokens, width].
    """

    hidden: Any
    kernels: Any


Output = LinearOutput | AdaptiveOutput


def logits(output: LinearOutput) -> Float[Array, "*rows vocab"]:
    """Compute all logits in float32 from a tied kernel [vocab, width]."""
    z = _product(output.hidden, output.kernel)
    if output.bias is None:
        return z
    return z + output.bias.reshape(*[1] * (z.ndim - 1), -1)


def log_probs(output: Output) -> Float[Array, "*rows vocab"]:
    """Compute log-probabilities of all tokens in float32.

    Args:
      output: model output, with a tied kernel [vocab, width] if linear.

    Returns:
      Log-probabilities [..., vocab] in the order of token ids.
    """
    if isinstance(output, LinearOutput):
        return jax.nn.log_softmax(logits(output), axis=-1)
    head, *tails = (
        jax.nn.log_softmax(_product(h, k), axis=-1)
        for h, k in zip(output.hidden, output.kernels, strict=True)
    )
    words = head.shape[-1] - len(tails)
    parts = [head[..., :words]]
    parts += [head[..., words + i, None] + tail for i, tail in enumerate(tails)]
    return jnp.concatenate(parts, axis=-1)


def nll(output: Output, labels: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Compute the negative log-likelihood of each label in chunks of positions.

    Args:
      output: model output with hidden states [batch, time, width].
      labels: token ids.

    Returns:
      Negative log-likelihood in nats, float32.
    """
    batch, time = labels.shape
    vocab = vocab_size(output)
    size = max(1, min(time, sizes().log_probs // max(batch * vocab, 1)))
    count = -(-time // size)

    def divided(x: Array) -> Array:
        # Chunk along time, so that rows stay on their devices.
        return chunked(x, count, size, axis=1)

    def chunk(part: tuple[Any, Array]) -> Array:
        found = log_probs(output._replace(hidden=part[0]))
        return -jnp.take_along_axis(found, part[1][..., None], axis=-1)[..., 0]

    found = jax.lax.map(chunk, jax.tree.map(divided, (output.hidden, labels)))
    return jnp.moveaxis(found, 0, 1).reshape(batch, -1)[:, :time]


def vocab_size(output: Output) -> int:
    """Return the vocabulary size."""
    if isinstance(output, LinearOutput):
        return int(output.kernel.shape[0])
    rows = sum(int(k.shape[0]) for k in output.kernels)
    return rows - (len(output.kernels) - 1)


def _product(hidden: Array, kernel: Array) -> Array:
    return jnp.einsum(
        "...w,vw->...v", hidden, kernel, preferred_element_type=jnp.float32
    )
