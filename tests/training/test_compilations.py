"""Count the compilations of a translator; test_train.py counts those of a ViT."""

from collections import Counter

import jax
import pytest
from helpers import tiny_nmt

from rdrop_jax import tasks


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


@pytest.mark.slow
def test_a_translator_compiles_each_of_its_shapes_once(compiled, tmp_path):
    jax.clear_caches()
    folder = tiny_nmt.write(tmp_path)
    options = {"data__buckets": 3, "total_steps": 2, "eval__every": 2}
    data = tasks.build(tiny_nmt.config(folder, **options)).train_data()
    shapes = {data[t]["labels"].shape + data[t]["src"].shape for t in range(2)}
    compiled.clear()
    tiny_nmt.train(folder, tmp_path / "run", **options)
    assert len(shapes) == 2
    assert compiled["jit(train_step)"] == len(shapes), compiled
