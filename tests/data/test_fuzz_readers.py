"""Damaged files of every format: an `InputError` or an answer, in bounded memory.

RDROP_FUZZ_SECONDS sets the time of the slow test, 600 by default for all readers.
"""

import os
import random
import time
import warnings

import pytest
from helpers import mutations, valid_files

from rdrop_jax.errors import InputError

SECONDS = float(os.environ.get("RDROP_FUZZ_SECONDS", "600"))
QUICK_SEEDS = range(12)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of valid files, and their readers and contents by name."""
    root = tmp_path_factory.mktemp("valid")
    return root, valid_files.contents(root)


def check(files, name, seed):
    """Read one damaged file; returns whether it was refused."""
    root, found = files
    read, content = found[name]
    path = root / name
    path.write_bytes(mutations.mutated(random.Random(f"{name} {seed}"), name, content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata
            read(path)
    except InputError:
        return True
    except BaseException as error:
        error.add_note(f"{name}, seed {seed}")
        raise
    finally:
        path.write_bytes(content)
    return False


def test_valid_files_are_read(files):
    root, found = files
    for name, (read, _) in found.items():
        read(root / name)


def test_a_few_damaged_files(files):
    for name in files[1]:
        for seed in QUICK_SEEDS:
            check(files, name, seed)
    # A file name that is too long for the file system.
    assert check(files, "run/vocabulary/index.json", 631)


@pytest.mark.slow
def test_damaged_files_for_minutes(files, capsys):
    end, seed, refused, count = time.monotonic() + SECONDS, len(QUICK_SEEDS), 0, 0
    while time.monotonic() < end:
        for name in files[1]:
            refused += check(files, name, seed)
            count += 1
        seed += 1
    with capsys.disabled():
        print(f"\nreaders: {count} damaged files, {refused} refused, {seed} seeds")
