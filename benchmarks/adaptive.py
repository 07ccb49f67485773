"""Loss and gradients of an adaptive softmax: R-Drop, plain training, and autodiff.

python -m benchmarks.adaptive [--positions 1024 --words 2000,4000,4000 --width 128]
"""

import argparse
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import interleaved, ratio, table
from rdrop_jax import adaptive_rdrop_loss, rdrop_loss
from rdrop_jax.cli import process
from rdrop_jax.models.outputs import AdaptiveOutput, log_probs

FACTOR = 4  # ratio of the widths of successive tails


def ours(alpha: float, hidden: list, kernels: list, labels: jax.Array) -> jax.Array:
    return adaptive_rdrop_loss(hidden, kernels, labels, alpha=alpha)[0]


def from_log_probs(hidden: list, kernels: list, labels: jax.Array) -> jax.Array:
    """Compute `rdrop_loss` from the log-probabilities of all tokens at once."""
    log_p = log_probs(AdaptiveOutput(hidden, kernels))
    return rdrop_loss(log_p, labels, alpha=1.0)[0]


def make_call(
    loss: Callable[..., jax.Array],
    passes: int,
    positions: int,
    words: Sequence[int],
    width: int,
) -> Callable[[], object]:
    """Make a call of the loss and its gradients in hidden states and kernels."""
    rng = np.random.default_rng(0)
    widths = [max(width // FACTOR**i, 1) for i in range(len(words))]
    rows = [words[0] + len(words) - 1, *words[1:]]

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    hidden = [normal(passes, positions, w) for w in widths]
    kernels = [normal(n, w) / jnp.sqrt(w) for n, w in zip(rows, widths, strict=True)]
    labels = jnp.asarray(rng.integers(0, sum(words), positions))
    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return lambda: jax.block_until_ready(run(hidden, kernels, labels))


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--words", default="2000,4000,4000", help="of head and tails")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    words = [int(n) for n in args.words.split(",")]
    call = functools.partial(
        make_call, positions=args.positions, words=words, width=args.width
    )
    arms = {
        "R-Drop": call(functools.partial(ours, 1.0), 2),
        "plain, one pass": call(functools.partial(ours, 0.0), 1),
        "R-Drop of all log-probabilities": call(from_log_probs, 2),
    }
    print(f"{args.positions} positions, {args.words} words, width {args.width}")
    seconds = interleaved(arms, args.rounds)
    print(table(seconds, "R-Drop"))
    print(f"R-Drop over plain: {ratio(seconds['R-Drop'], seconds['plain, one pass'])}")


if __name__ == "__main__":
    process.tune_allocator()
    main()
