"""Optional packages: the extra that brings each one, and messages if it is missing."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

# Import name to extra. Imports of the base install are not listed.
EXTRA_OF = {
    "PIL": "train",
    "array_record": "train",
    "babel": "train",
    "emoji": "train",
    "flax": "train",
    "grain": "train",
    "ml_collections": "train",
    "ml_dtypes": "train",
    "nltk": "train",
    "orbax": "train",
    "rouge_score": "train",
    "sacrebleu": "train",
    "sacremoses": "train",
    "safetensors": "train",
    "scipy": "train",
    "sentencepiece": "train",
    "sklearn": "train",
    "tensorboardX": "train",
    "tokenizers": "train",
    "datasets": "hub",
    "huggingface_hub": "hub",
    "pyarrow": "hub",
    "tensorflow_datasets": "hub",
    "jinja2": "report",
    "markupsafe": "report",
    "mlflow": "mlflow",
    "tensorflow": "prepare",
    "wandb": "wandb",
}


def install(*extras: str) -> str:
    """Return the command that installs extras, for a clone or for a wheel."""
    names = ",".join(extras)
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        return f'pip install "rdrop-jax[{names}]"'
    return f'pip install -e "{"." if Path.cwd() == root else root}[{names}]"'


def missing(module: str, *extras: str) -> str:
    """Return the message for a module that is not installed.

    Args:
      module: name of the module, one of `EXTRA_OF`.
      extras: extras that the program needs; all are named if one of them is missing.
    """
    package = module.partition(".")[0]
    extra = EXTRA_OF[package]
    names = extras if extra in extras else (extra,)
    return f"{package} is not installed. Run `{install(*names)}`."


@contextlib.contextmanager
def explained(name: str, *extras: str) -> Iterator[None]:
    """Explain failed imports of optional packages.

    Args:
      name: ``__name__`` of the importing module. If it is ``"__main__"``, print one
        line and exit with status 2.
      extras: extras that the program needs.

    Raises:
      ModuleNotFoundError: with the command that installs the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA_OF:
            raise
        message = missing(str(error.name), *extras)
        if name != "__main__":
            raise ModuleNotFoundError(message, name=error.name) from error
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
