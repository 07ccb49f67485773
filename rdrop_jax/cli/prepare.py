"""python -m rdrop_jax.prepare imagenet2012 --data_dir DATA --from DOWNLOADS

Names: imagenet2012; iwslt14_de_en and iwslt14_es_en, for both directions; tfds:NAME for
any dataset of TensorFlow Datasets. Most datasets need no preparation: name them on the
Hugging Face Hub, data.name=hf:ORG/NAME.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths

_logger = logging.getLogger(__name__)


def prepare(name: str, data_dir: Path, files: Sequence[Path]) -> Path:
    """Convert a dataset to the format that training reads.

    Args:
      name: name of the dataset.
      data_dir: folder of prepared datasets.
      files: downloaded archives, or folders that contain them.

    Returns:
      The folder of the dataset. An existing folder is not changed.

    Raises:
      InputError: an unknown name, or missing, corrupt or unexpected files.
    """
    from rdrop_jax import tasks
    from rdrop_jax.data import catalogue

    recipes = tasks.recipes()
    paths.local("--data_dir", data_dir)
    for file in files:
        paths.local("--from", file)
    if name.startswith(catalogue.PREFIX):
        data_dir.mkdir(parents=True, exist_ok=True)
        return catalogue.prepare(data_dir, name.removeprefix(catalogue.PREFIX))
    if name not in recipes:
        hint = config_lib.suggest(name, recipes)
        raise InputError(
            f"{name}: no such dataset.{hint} There are: {', '.join(recipes)}, and "
            f"{catalogue.PREFIX}NAME for the catalogue of TensorFlow Datasets"
        )
    folder = data_dir / name
    recipe, read_index = recipes[name]
    if folder.exists():
        read_index(folder)
        _logger.info("%s exists. Remove it to prepare it again", folder)
        return folder
    return recipe(folder, list(files))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and prepare one dataset."""
    parser = flags.Parser(prog="rdrop_jax.prepare", description=__doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--data_dir",
        type=flags.path,
        default=os.environ.get("RDROP_DATA_DIR"),
        help="folder of prepared datasets; default: $RDROP_DATA_DIR",
    )
    parser.add_argument(
        "--from",
        dest="files",
        type=flags.path,
        nargs="+",
        metavar="FILE",
        help="archives or folders that hold them; default: the data folder",
    )
    args = flags.parse_plain(parser, argv)
    if args.data_dir is None:
        raise InputError(
            "--data_dir: expected a folder, or $RDROP_DATA_DIR, found none"
        )
    data_dir = Path(args.data_dir)
    folder = prepare(args.name, data_dir, args.files or [data_dir])
    _logger.info("prepared: %s", folder)
