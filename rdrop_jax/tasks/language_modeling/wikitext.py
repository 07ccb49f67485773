"""WikiText-103 from its published files."""

import functools
import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.tasks.language_modeling import token_files, vocabularies

_logger = logging.getLogger(__name__)
_PARTS = {"train": "train", "validation": "valid", "test": "test"}
# Merity et al., 2016 (arXiv 1609.07843), table 1; including ends of lines.
TOKENS = {"train": 103_227_021, "validation": 217_646, "test": 245_569}
WORDS = 267_735


def prepare(folder: Path, sources: Sequence[Path]) -> Path:
    """Write WikiText-103 as word ids of its vocabulary.

    Args:
      folder: output folder.
      sources: ``wikitext-103-v1.zip``, a folder with its files, or the files
        ``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens``.

    Returns:
      The folder.

    Raises:
      InputError: a file is missing or empty.
    """
    found = {
        split: _find(sources, rf"wiki\.{part}\.tokens")
        for split, part in _PARTS.items()
    }
    _logger.info("counting words")
    words = vocabularies.learn("words", found["train"](), 0, 1)
    made = token_files.make(words, {split: found[split]() for split in found})
    token_files.save(made, folder)
    for split, tokens in TOKENS.items():
        count = len(made.splits[split].ids)
        _logger.info("%s: %d tokens; published: %d", split, count, tokens)
    _logger.info("vocabulary: %d words; published: %d", len(words), WORDS)
    return folder


def _find(sources: Sequence[Path], name: str) -> Callable[[], Iterator[str]]:
    """Return a function that reads the lines of the file of that name."""
    for source in sources:
        below = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in below:
            if re.fullmatch(name, path.name) and path.is_file():
                return functools.partial(lines.read, path)
            if path.suffix == ".zip" and (member := _member(path, name)):
                return functools.partial(_zipped, path, member)
    raise InputError(
        f"--from: expected {name.replace(chr(92), '')} in the folders and archives "
        "given, found none. It is part of wikitext-103-v1.zip (Merity et al., 2016)."
    )


def _member(path: Path, name: str) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = (n for n in archive.namelist() if re.search(f"(^|/){name}$", n))
            return next(names, None)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"--from: {path}: corrupt archive: {error}") from error


def _zipped(path: Path, member: str) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield from lines.decoded(file, member)
