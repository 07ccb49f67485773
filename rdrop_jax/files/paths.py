"""Validation of paths from users. Needs no jax."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

from ml_collections import ConfigDict

from rdrop_jax.config import flatten
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub

# Config fields that contain a path, and the group of files by split.
_FIELDS = ("init_from", "data.dir", "data.name", "data.vocabulary", "data.tokenizer")
_GROUP = "data.files."
_NAMED = ("init_from", "data.name")  # these accept hf:ORG/NAME
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
# Schemes that stay a URL after pathlib has merged the slashes of gs://bucket.
_STORES = (
    "abfs abfss adl az azure cos dbfs gcs gs hdfs memory oss r2 s3 s3a s3n wasb wasbs"
)
_HOSTS = "file ftp ftps git hf http https scp sftp ssh swift viewfs webhdfs"
_SCHEMES = frozenset([*_STORES.split(), *_HOSTS.split()])
# Commands that copy a folder to or from a bucket.
_RSYNC = {
    "gs": "gcloud storage rsync -r",
    "s3": "aws s3 sync",
}
_MAX_NAME, _MAX_PATH = 255, 4096  # bytes, on Linux and macOS


def local(field: str, path: str | os.PathLike[str]) -> Path:
    """Check that a path belongs to the local file system, and return it.

    Args:
      field: flag or config field, for messages.
      path: text from the user. "-" and "" are accepted.

    Returns:
      The path.

    Raises:
      InputError: a URL, a NUL character, or a name that no file can have.
    """
    if found := problem(os.fspath(path)):
        raise InputError(f"{field}: {found}")
    return Path(path)


def workdir(path: str | os.PathLike[str]) -> Path:
    """Check that a path can be a workdir with checkpoints, and return it.

    Args:
      path: path as in `local`. Its real path must be UTF-8, because tensorstore, which
        writes the arrays, accepts no other encoding.

    Returns:
      The path.

    Raises:
      InputError: not a local path, or not UTF-8.
    """
    found = local("--workdir", path)
    real = os.path.realpath(found)
    try:
        real.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"--workdir: expected a path in UTF-8, found {real!a}. Rename the folder"
        ) from None
    return found


def workdirs(
    given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Path]:
    """Check one or several workdirs, and return them as a list.

    Raises:
      InputError: none, or one that `workdir` refuses.
    """
    found = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not found:
        raise InputError("--workdir: expected the folder of a run, found none")
    return [workdir(each) for each in found]


def problem(text: str) -> str:
    """Return why a text is not a path of the local file system; "" if it is one."""
    if found := _URL.match(text):
        scheme, slashes, rest = found[1].lower(), found[2], found[3]
        if len(slashes) > 1 or scheme in _SCHEMES:
            remedy = _remedy(scheme, slashes, rest)
            return f"expected a local path, found the URL {text!r}. {remedy}"
    if "\0" in text:
        return f"expected a path, found {text!r} with a NUL character"
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:
        return f"expected a path, found {text!a}, which no file can be named"
    longest = max(map(len, content.split(b"/")))
    if longest > _MAX_NAME or len(content) >= _MAX_PATH:
        return (
            f"expected names of at most {_MAX_NAME} bytes in a path of at most "
            f"{_MAX_PATH - 1} bytes, found {text[:40]!r}... with a name of {longest} "
            f"bytes in a path of {len(content)} bytes. Choose a shorter path"
        )
    return ""


def check_config(config: ConfigDict | Mapping[str, object]) -> None:
    """Check every field of a config that contains a path.

    Raises:
      InputError: a path that `local` rejects.
    """
    for name, value in flatten(config).items():
        if name in _FIELDS or name.startswith(_GROUP):
            for path in value if isinstance(value, list) else [value]:
                named = name in _NAMED and isinstance(path, str) and hub.is_name(path)
                if isinstance(path, str) and not named:
                    local(name, path)


def _remedy(scheme: str, slashes: str, rest: str) -> str:
    if scheme == "file":
        # file:///x and file:/x; in file://host/x the host comes first.
        host, slash, tail = rest.partition("/")
        if len(slashes) == 2 and host not in ("", "localhost"):
            return "Give the path alone, without file://"
        path = "/" + unquote(tail if len(slashes) == 2 and slash else rest)
        return f"Use {path!r}"
    if scheme == "hf":
        return "For a repository of the Hub, use hf:ORG/NAME in init_from or data.name"
    if scheme == "https" and rest.startswith("huggingface.co/"):
        name = rest.removeprefix("huggingface.co/").removeprefix("datasets/")
        return f"For a repository of the Hub, use hf:{'/'.join(name.split('/')[:2])}"
    if scheme in ("http", "https", "ftp", "ftps", "git"):
        return "Download it, and give the path of the local copy"
    if scheme in _RSYNC:
        return (
            "A bucket lacks the locks, renames and fsync that files of a run need. Use "
            f"a local folder, and copy it by `{_RSYNC[scheme]}`"
        )
    return (
        "Mount the storage as a folder or copy the data to a local disk, and give that "
        "path"
    )
