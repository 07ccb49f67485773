"""Data directory of the user, and errors for missing data. Needs no jax."""

import os

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.files import paths

# Names of datasets that come with Python packages, so that they have no files.
EMBEDDED = ("cldr_names", "digits", "docstrings")


def root(data: ConfigDict) -> str:
    """Return ``data.dir`` or ``$RDROP_DATA_DIR``; empty if neither is set."""
    field, path = "data.dir", str(data.dir)
    if not path:
        field, path = "$RDROP_DATA_DIR", os.environ.get("RDROP_DATA_DIR", "")
    return str(paths.local(field, path)) if path else ""


def file_field(data: ConfigDict, split: str) -> str:
    """Return the field of a split's file for messages, with $RDROP_DATA_DIR if used."""
    relative = not data.dir and not os.path.isabs(data.files[split])
    from_environment = relative and os.environ.get("RDROP_DATA_DIR")
    return f"data.files.{split}{' in $RDROP_DATA_DIR' if from_environment else ''}"


def unprepared(data: ConfigDict, sources: str, page: str, note: str = "") -> InputError:
    """Build the error for a dataset that is not prepared yet.

    Args:
      data: the config's ``data``.
      sources: names of the source files; empty if they are downloaded.
      page: documentation page.
      note: last line of the message.

    Returns:
      An error that explains how to prepare the dataset.
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
        f"{note and chr(10)}{note}"
    )


def check_sizes(data: ConfigDict) -> None:
    """Reject a held-out size for a split that has its own file.

    Args:
      data: the config's ``data``; a size of None or 0 holds nothing out.

    Raises:
      InputError: both fields are set.
    """
    for split in ("validation", "test"):
        if data.files[split] and data[split]:
            raise InputError(
                f"data.{split}: expected no size to hold out next to data.files."
                f"{split}={data.files[split]}, found {data[split]:g}. Remove one of "
                "them"
            )
