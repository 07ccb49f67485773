"""Options of a beam search, and the length penalty of finished hypotheses."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class SearchOptions(NamedTuple):
    """Options of a beam search.

    Attributes:
      bos: id of the start token; EOS in fairseq.
      eos: id of the end token.
      pad: padding id after the end; never chosen.
      beam: number of live hypotheses per example.
      n_best: number of hypotheses to return, at most ``beam``.
      length_penalty: exponent of the length by which log-probabilities are divided; 0
        compares plain log-probabilities.
      early_stop: stop an example once ``beam`` hypotheses have finished, as fairseq.
        False continues until no live hypothesis can reach the ``n_best``. The bound is
        the best live log-probability, divided by the most favourable length penalty
        (that of the limit, or of the next length if the exponent is negative).
      first: id of a forced first token with log-probability 0; None forces no token.
      free_end: score the EOS that ``max_length`` forces as log-probability 0, as in
        Hugging Face's ``generate``. False uses its log-probability, as in fairseq.
      no_repeat: length of the n-grams that must not repeat in a hypothesis; 0 disables
        this.
      forbid: further ids that are never chosen, such as that of the unknown token. BOS
        is also forbidden, unless it equals EOS.
    """

    bos: int
    eos: int
    pad: int
    beam: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    early_stop: bool = True
    first: int | None = None
    free_end: bool = False
    no_repeat: int = 0
    forbid: tuple[int, ...] = ()


def divisor(length: Array, options: SearchOptions) -> Array:
    """Return the length penalty of a hypothesis of ``length`` tokens (the divisor)."""
    return length.astype(jnp.float32) ** options.length_penalty
