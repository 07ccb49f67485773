"""Whether a dataset is there, by looking at paths alone. Needs no jax."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.data import pair_sets, running_text
from rdrop_jax.errors import InputError


def digits_file() -> Path:
    """scikit-learn's digits.csv.gz, found without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "data.name=digits: expected scikit-learn, which carries the digits, found "
            "no such package; pip install scikit-learn"
        )
    file = Path(spec.submodule_search_locations[0], "datasets/data/digits.csv.gz")
    if not file.is_file():
        raise InputError(f"data.name=digits: expected {file}, found no such file")
    return file


def check(config: ConfigDict) -> None:
    """Raises `InputError` where training data cannot be read."""
    if config.task == "translation":
        pair_sets.find(config.data)
    elif config.task == "language_model":
        running_text.check(config.data)
    elif config.data.name == "digits":
        digits_file()
