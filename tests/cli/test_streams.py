"""Standard output that is closed or full, and limits of memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.programs import ROOT

from rdrop_jax.cli import process
from rdrop_jax.errors import InputError

PROGRAM = (
    "from rdrop_jax.cli import process\ndef main(argv):\n    {body}\nprocess.run(main)"
)


def run(body, redirect="", prefix="exec"):
    line = f'{prefix} "{sys.executable}" -c "$PROGRAM" {redirect}'
    env = os.environ | {"PROGRAM": PROGRAM.format(body=body)}
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_closed_output_is_named():
    done = run("print('answer')", ">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: expected it open")


def test_closed_input_and_errors_do_no_harm():
    body = "import os, sys; print([os.fstat(n).st_mode > 0 for n in (0, 1, 2)]);"
    done = run(f"{body} print(sys.stdin.read())", "<&- 2>&-")
    assert done.returncode == 0
    assert done.stdout == "[True, True, True]\n\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flush", [True, False])
def test_a_full_output_is_named(flush):
    done = run(f"print('answer', flush={flush})", ">/dev/full")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: standard output: cannot write (No space left" in done.stderr


def test_a_reader_that_left_ends_the_program():
    done = run("print('answer\\n' * 100_000)", "| true")
    assert done.stderr == ""


def test_too_little_memory_is_a_message():
    done = run("raise MemoryError('of 1 TB')")
    assert done.returncode == 1
    assert done.stderr == (
        "error: not enough memory. Lower batch_size or batch_tokens, eval.batch_size "
        "or the model's size. of 1 TB\n"
    )


def test_a_limit_of_address_space_is_named(monkeypatch):
    limits = {"soft": 1_000_000 * 1024}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits["soft"], -1))
    with pytest.raises(InputError, match=r"^ulimit -v: .* found 1000000 KiB"):
        process.check_address_space()
    for enough in (resource.RLIM_INFINITY, 2**31):
        limits["soft"] = enough
        process.check_address_space()


def test_threads_left_by_a_failed_save_do_not_keep_the_program(monkeypatch):
    """As after the inodes of a disk were used up."""
    body = (
        "import threading; from rdrop_jax.errors import InputError; "
        "process._EXIT_WITHIN = 0.5; "
        "threading.Thread(target=threading.Event().wait).start(); "
        "raise InputError('full')"
    )
    done = run(body, prefix="timeout 20")
    assert done.returncode == 2
    assert done.stderr == "error: full\n"
