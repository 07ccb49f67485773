"""A disk that is full, for this process."""

import contextlib
import resource

import pytest


@contextlib.contextmanager
def file_size_limit(size):
    """Files longer than this cannot be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = r"--workdir: no space left to write in .*\(.* MiB free, File too large\)"


# Buffers that could not be flushed are dropped, and orbax's threads complain.
after_a_full_disk = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)
