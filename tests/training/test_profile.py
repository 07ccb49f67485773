"""--profile writes a trace of a few steps."""

import gzip
import json

import jax.numpy as jnp
import pytest
from helpers import messages
from helpers.tiny import TINY, VIT

from rdrop_jax import train
from rdrop_jax.cli import profiler
from rdrop_jax.errors import InputError


def argv(workdir, profile):
    fields = TINY | {"eval.every": "6", "eval.test": "false"}
    fields["total_steps"] = "0.2 epochs"
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", VIT, "--workdir", str(workdir), profile, *overrides]


def traces(folder):
    return sorted(folder.rglob("*.trace.json.gz"))


def traced(folder, start, count, steps, last=100):
    with (
        messages.collected() as said,
        profiler.traced(start, count, last, folder) as callback,
    ):
        for step in steps:
            callback.step(step, {"w": jnp.ones(3) * step})
    return said


@pytest.mark.slow  # the next test traces too
def test_a_trace_has_the_steps(tmp_path):
    with messages.collected() as said:
        train.main(argv(tmp_path, "--profile=2:2"))
    assert "profile: tracing steps 3 to 4" in said
    assert f"profile: trace in {tmp_path / 'profile'}" in said
    (path,) = traces(tmp_path / "profile")
    assert list(path.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "train"]
    assert steps == ["3", "4"]


def test_a_run_that_ends_first_keeps_its_trace(tmp_path):
    said = traced(tmp_path, 10, 5, range(12, 14))  # as one that resumed at step 11
    assert said[0] == "profile: tracing steps 13 to 17"
    assert len(traces(tmp_path)) == 1


def test_a_trace_ends_with_the_last_step(tmp_path):
    said = traced(tmp_path, 4, 5, range(1, 7), last=6)
    assert said == [
        "profile: tracing steps 5 to 6",
        f"profile: trace in {tmp_path}",
    ]
    said = traced(tmp_path / "none", 6, 5, range(1, 7), last=6)
    assert said == ["profile: no trace, because no step followed step 6"]


def test_a_run_that_ends_before_the_trace_says_so(tmp_path):
    said = traced(tmp_path, 10, 5, range(1, 7))
    assert said == ["profile: no trace, because no step followed step 10"]
    assert traces(tmp_path) == []


@pytest.mark.parametrize("text", ["5", "0:5", "5:0", "a:b", "-1:5", "5:5:5"])
def test_steps_are_checked(text, tmp_path):
    with pytest.raises(InputError, match=r"^--profile: expected START:STEPS, two pos"):
        train.main(argv(tmp_path, f"--profile={text}"))
