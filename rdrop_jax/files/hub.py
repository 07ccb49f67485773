"""Names of the Hugging Face Hub, and its errors as one line each. Needs no jax."""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"({_PART}(?:/{_PART})?)((?:/[^@/]+)?)(?:@(\S+))?", re.ASCII)
SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Name:
    """A repository of the Hub.

    Attributes:
      repo: ``ORG/NAME``.
      part: configuration of a dataset; "" if absent.
      revision: branch, tag or commit; "" for the main branch.
    """

    repo: str
    part: str
    revision: str


def is_name(text: str) -> bool:
    """Return whether a text is ``hf:...``, and no URL."""
    return text.startswith(PREFIX) and not text.startswith(f"{PREFIX}/")


def parse(field: str, text: str, *, parts: bool = False) -> Name:
    """Parse ``hf:ORG/NAME[@REVISION]``, or ``hf:ORG/NAME[/CONFIG][@REVISION]``.

    Args:
      field: config field, for messages.
      text: text from the user.
      parts: True accepts a configuration.

    Raises:
      InputError: another spelling.

    Example:
      >>> parse("init_from", "hf:google-bert/bert-base-uncased@v1")
      Name(repo='google-bert/bert-base-uncased', part='', revision='v1')
    """
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    if not found or (found[2] and not parts):
        shape = "ORG/NAME[/CONFIG]" if parts else "ORG/NAME"
        raise InputError(
            f"{field}: expected {PREFIX}{shape}[@REVISION], found {text!r}"
        )
    return Name(found[1], found[2].removeprefix("/"), found[3] or "")


def pinned(field: str, text: str, commit: str) -> str:
    """Return a name with a commit instead of its revision.

    Example:
      >>> pinned("data.name", "hf:nyu-mll/glue/rte@main", "bcdcba7")
      'hf:nyu-mll/glue/rte@bcdcba7'
    """
    name = parse(field, text, parts=True)
    return f"{PREFIX}{'/'.join(filter(None, [name.repo, name.part]))}@{commit}"


def check_content(field: str, text: str, folder: Path) -> None:
    """Compare the files of a snapshot with the checksums of the Hub.

    The checksum of a file is the name of its blob in the cache.

    Args:
      field: config field, for messages.
      text: name of the repository, for messages.
      folder: folder of a commit in the cache of the Hub.

    Raises:
      InputError: a file is corrupt.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = file.resolve()
        if len(blob.name) == 64:  # large files: sha256
            found = checksums.sha256(blob)
        elif len(blob.name) == 40:  # small files: git's sha1
            content = blob.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        else:  # a cache without links
            continue
        if found != blob.name:
            raise InputError(
                f"{field}: {text}: {file.relative_to(folder)}: expected the checksum "
                f"{blob.name}, found {found}: the file is corrupt. Delete {blob}, and "
                "start again"
            )


def hint(name: str, text: str) -> str:
    """Return the right spelling for a bare ``ORG/NAME``; "" for other texts.

    Example:
      >>> hint("init_from", "a/b")
      ' For a repository of the Hugging Face Hub, use --config.init_from=hf:a/b.'
    """
    found = _NAME.fullmatch(text)
    if not found or "/" not in found[1]:
        return ""
    spelled = f"--config.{name}={PREFIX}{found[0]}"
    return f" For a repository of the Hugging Face Hub, use {spelled}."


@contextmanager
def explained(field: str, text: str, name: Name) -> Iterator[None]:
    """Convert errors of ``huggingface_hub`` to one line that names the field.

    Args:
      field: config field.
      text: its value.
      name: the parsed value.
    """
    from huggingface_hub import constants, errors

    revision = name.revision or constants.DEFAULT_REVISION
    start = f"{field}: {text}: "
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{start}expected access to the repository, which is gated. Accept its "
            f"terms at {constants.ENDPOINT}/{name.repo}, and set HF_TOKEN to a token "
            "of your account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{start}expected a repository of {constants.ENDPOINT}, found none of "
            "this name that you can access. Correct the name; for a private "
            "repository, set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{start}expected a branch, tag or commit of {name.repo}, found no "
            f"{revision!r}. Correct what follows @"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(start + _not_cached(error, revision)) from error
    except errors.HfHubHTTPError as error:
        raise InputError(start + _refused(error.response.status_code)) from error
    except (errors.HTTPError, errors.FileMetadataError) as error:
        raise InputError(start + _unreachable(error)) from error
    except OSError as error:
        if error.errno in SPACE:
            raise InputError(
                f"{start}cannot write to {constants.HF_HOME} ({error.strerror}). "
                "Free some space, or set HF_HOME to a folder on another disk"
            ) from error
        if error.errno is not None:
            raise InputError(
                f"{start}cannot use {constants.HF_HUB_CACHE}: {error}"
            ) from error
        raise InputError(start + _not_cached(error, revision)) from error


def _not_cached(error: Exception, revision: str) -> str:
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(cause.response.status_code)
    if constants.is_offline_mode() or isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"expected a complete copy of {revision!r} in the cache "
            f"{constants.HF_HOME}, because HF_HUB_OFFLINE is set, found none. Run it "
            "once without HF_HUB_OFFLINE"
        )
    return _unreachable(cause or error)


def _refused(status: int) -> str:
    remedy = "Start again later"
    if status in (401, 403):
        remedy = "Correct the name, or set HF_TOKEN to a token with access to it"
    return f"the Hub refused access (HTTP {status}). {remedy}"


def _unreachable(error: BaseException) -> str:
    from huggingface_hub import constants

    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"{constants.ENDPOINT} cannot be reached or broke off ({reason:.120}). Check "
        "the network and start again, or use a local copy"
    )
