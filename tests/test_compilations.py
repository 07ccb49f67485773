"""One compilation per shape, counted."""

from collections import Counter

import jax
import pytest
from tiny import train


@pytest.fixture
def compiled():
    """Names of functions that were compiled, or fetched from the cache on disk."""
    found = Counter()

    def listen(event, seconds, **details):
        del seconds
        if event == "/jax/core/compile/backend_compile_duration":
            found[details["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_run_compiles_each_of_its_programs_once(compiled, tmp_path):
    jax.clear_caches()
    train(tmp_path)  # six updates, two validations and the test split
    assert compiled["jit(train_step)"] == 1, compiled
    assert compiled["jit(sums)"] == 1, compiled  # of all splits
