"""Compare R-Drop with plain training: equal budgets, fresh test seeds, intervals."""

_PROGRAM = ("compare", "main", "read_options")


def __getattr__(name: str) -> object:
    # Worker processes import this package and need no report.
    if name not in _PROGRAM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rdrop_jax.compare import program

    return getattr(program, name)
