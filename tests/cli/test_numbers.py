"""Integers far out of range, by command line and by field."""

import pytest
from helpers.tiny import config

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.compare.comparison_options import check_options
from rdrop_jax.compare.program import read_options
from rdrop_jax.errors import InputError
from rdrop_jax.training import distributed

HUGE = str(10**30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 2**63),
        ("seed", -1),
        ("data__split_seed", HUGE),
        ("batch_size", HUGE),
        ("eval__batch_size", 2**31),
        ("data__workers", 10**9),
        ("data__prefetch", 10**9),
        ("model__width", HUGE),
        ("eval__patience", HUGE),
        ("checkpoint__keep", HUGE),
        ("mesh__data", HUGE),
        ("rdrop__num_passes", HUGE),
    ],
)
def test_integers_out_of_range_are_named(field, value):
    with pytest.raises(InputError, match=f"^{field.replace('__', '.')}: expected"):
        config(**{field: value})


def test_seeds_of_63_bits_are_taken():
    assert config(seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    "steps", ["²", "9" * 5000, f"{HUGE} epochs", "3000000000 steps"]
)
def test_durations_out_of_range_are_named(steps):
    with pytest.raises(InputError, match=r"^total_steps: expected"):
        config_lib.resolve(config(total_steps=steps), 10.0)


@pytest.mark.parametrize("flag", ["start_timeout", "heartbeat_timeout"])
def test_timeouts_out_of_range_are_named(flag):
    parser = flags.Parser()
    distributed.add_flags(parser)
    with pytest.raises(InputError, match=f"^--{flag}: expected from 1"):
        distributed.from_flags(parser.parse_args([f"--{flag}={HUGE}"]))


@pytest.mark.parametrize("flag", ["seeds", "final_seeds"])
def test_seeds_of_a_comparison_out_of_range_are_named(flag):
    argv = ["--config", "vit.py", "--workdir", "x", f"--{flag}={HUGE}"]
    with pytest.raises(InputError, match=f"^--{flag}: expected from 1"):
        check_options(read_options(argv)[0])
