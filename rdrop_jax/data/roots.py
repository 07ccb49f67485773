"""Where the user's data lie, and how to say that they do not. Needs no jax."""

import os

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.runtime import paths


def root(data: ConfigDict) -> str:
    """``data.dir`` or ``$RDROP_DATA_DIR``, empty where neither is set."""
    field, path = "data.dir", str(data.dir)
    if not path:
        field, path = "$RDROP_DATA_DIR", os.environ.get("RDROP_DATA_DIR", "")
    return str(paths.local(field, path)) if path else ""


def unprepared(data: ConfigDict, sources: str, page: str) -> InputError:
    """The error for a dataset that `rdrop_jax.prepare` has yet to make.

    Args:
      data: the config's ``data``.
      sources: what to prepare it from; empty where it is downloaded.
      page: of the documentation.

    Returns:
      An error that says how to prepare it.
    """
    found = root(data)
    where = (
        f"in {found}" if found else "and neither data.dir nor $RDROP_DATA_DIR is set"
    )
    return InputError(
        f"data.name={data.name}: not prepared {where}. Prepare it once:\n"
        f"  python -m rdrop_jax.prepare {data.name} --data_dir {found or 'DATA'}"
        f"{' --from ' + sources if sources else ''}\n"
        f"and train with --config.data.dir={found or 'DATA'}; see docs/{page}.md"
    )


def check_sizes(data: ConfigDict) -> None:
    """Refuse a size to hold out for a split that has a file.

    Args:
      data: the config's ``data``, where a size of None or 0 holds nothing out.

    Raises:
      InputError: names the two fields.
    """
    for split in ("validation", "test"):
        if data.files[split] and data[split]:
            raise InputError(
                f"data.{split}: expected no size to hold out next to data.files."
                f"{split}={data.files[split]}, found {data[split]:g}. Remove one of "
                "them"
            )
