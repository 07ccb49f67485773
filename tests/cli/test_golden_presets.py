"""The config of every preset, field by field, as a golden file.

Run ``python tests/cli/test_golden_presets.py`` to write the files again.
"""

import importlib
from pathlib import Path

import pytest

from rdrop_jax import flags

CONFIGS = ("glue", "lm", "nmt", "summarization", "vit")
GOLDEN = Path(__file__).parent / "golden"


def text(name: str) -> str:
    presets = importlib.import_module(f"configs.{name}").PRESETS
    return "".join(
        f"{preset}\n{flags.show(flags.load(f'configs/{name}.py:{preset}', {}))}\n"
        for preset in presets
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_presets_are_those_of_the_golden_file(name):
    assert text(name).splitlines() == (GOLDEN / f"{name}.txt").read_text().splitlines()


if __name__ == "__main__":
    for each in CONFIGS:
        (GOLDEN / f"{each}.txt").write_text(text(each))
