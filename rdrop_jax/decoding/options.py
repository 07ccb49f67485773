"""What a search looks for, and how it scores what has ended."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

Constrain = Callable[[Array, Array, Array], Array]
PENALTIES = ("power", "gnmt")


class Options(NamedTuple):
    """What a search looks for.

    Attributes:
      bos: id that every hypothesis starts from; EOS in fairseq.
      eos: id that ends one.
      pad: id after the end; never chosen.
      beam: live hypotheses per example.
      n_best: how many to return, at most ``beam``.
      length_penalty: exponent of the length; 0 compares plain log-probabilities.
      penalty: "power" divides by ``length ** length_penalty``, "gnmt" by
        ``((5 + length) / 6) ** length_penalty``.
      early_stop: stop an example once ``beam`` hypotheses have ended, as fairseq does.
        False goes on until no live one can reach the ``n_best``: until the best live
        log-probability, divided for the length that flatters it most (the limit, or the
        next one if the penalty is negative), is not above the worst of them.
      first: id that every hypothesis begins with, at no cost; None leaves it free.
      free_end: the EOS that ``max_length`` forces costs nothing, as in Hugging Face's
        ``generate``; else its log-probability, as in fairseq.
      no_repeat: no sequence of so many tokens stands twice in a hypothesis; 0 allows
        it.
      forbid: further ids that are never chosen, as that of unknown words. BOS is
        forbidden too, unless it is EOS.
      constrain: None, or ``(log_probs [batch, beam, vocab], tokens [batch, beam, time],
        step) -> log_probs``, which may lower any of them, to -inf if it must. The first
        ``step`` tokens are those chosen so far.
    """

    bos: int
    eos: int
    pad: int
    beam: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    penalty: str = "power"
    early_stop: bool = True
    first: int | None = None
    free_end: bool = False
    no_repeat: int = 0
    forbid: tuple[int, ...] = ()
    constrain: Constrain | None = None


def check(options: Options) -> None:
    """Refuses options that cannot be."""
    if options.penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {PENALTIES}: {options.penalty!r}")
    if not 1 <= options.n_best <= options.beam:
        raise ValueError(
            "n_best must be between 1 and beam: found "
            f"{options.n_best} of {options.beam}"
        )


def divisor(length: Array, options: Options) -> Array:
    """What the log-probability of a hypothesis of ``length`` tokens is divided by."""
    size = length.astype(jnp.float32)
    if options.penalty == "gnmt":
        size = (5.0 + size) / 6.0
    return size**options.length_penalty
