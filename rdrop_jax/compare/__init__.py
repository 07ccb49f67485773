"""Compare R-Drop with plain training: equal budgets, fresh test seeds, intervals."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Run the comparison program with the given command-line arguments."""
    from rdrop_jax.compare import program

    program.main(argv)
