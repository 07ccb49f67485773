"""Whether a dataset is there, and what it says of itself; needs no jax."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

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


def completed(config: ConfigDict) -> ConfigDict:
    """A config with what its dataset says of itself, as the names of its classes.

    Args:
      config: as `rdrop_jax.flags.load` returns it.

    Returns:
      A locked copy; the config itself where there is nothing to add.

    Raises:
      InputError: training data that is not there.
    """
    if config.task == "text_classification":
        from rdrop_jax.data import text_sets  # and with it numpy, slow to load

        return text_sets.completed(config)
    if config.data.name == "digits":
        digits_file()
    return config
