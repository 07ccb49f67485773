"""Running text: docstrings, the user's files, datasets by name. Needs no jax."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rdrop_jax.config import suggest
from rdrop_jax.data import catalogue, docstrings, tables
from rdrop_jax.data import hub as data_hub
from rdrop_jax.data.datasets import is_named, load, prepared_folder
from rdrop_jax.data.splits import SPLITS, hold_out_groups
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.files.lines import read as read_lines
from rdrop_jax.files.roots import check_sizes, file_field, root
from rdrop_jax.tasks.language_modeling import token_files, vocabularies
from rdrop_jax.tasks.language_modeling.token_files import Corpus

_logger = logging.getLogger(__name__)
# Prepared by version 0.1, whose runs resume from it, and the same on the Hub.
PREPARED, HUB = ("wikitext103",), "hf:Salesforce/wikitext/wikitext-103-v1"
NAMES = ("docstrings", "files", *PREPARED)
PACKAGES = ("numpy", "scipy")
# Fraction of the characters to hold out if the config has no size.
HELD_OUT = 0.05
_LINE = 20  # shorter lines may be headings


def check_data(config: ConfigDict, commit: str = "") -> ConfigDict:
    """Check that the files of the text exist, and return the config.

    Args:
      config: config of the run.
      commit: commit of a dataset of the Hub that the run has encoded; its workdir has
        the text. "" loads the dataset.

    Raises:
      InputError: a file is missing; the message explains how to prepare it.
    """
    data = config.data
    check_name(data)
    if is_named(data.name):
        if not commit:
            named_lines(data)
    elif data.name == "docstrings":
        for package in PACKAGES:
            docstrings.root(package)
    elif data.name == "files":
        files(data)
    else:
        token_files.read_index(prepared(data))
    return config


def check_name(data: ConfigDict) -> None:
    """Check ``data.name``.

    Raises:
      InputError: an unknown name.
    """
    if data.name not in NAMES and not is_named(data.name):
        raise InputError(
            f"data.name: expected docstrings, files, {hub.PREFIX}ORG/NAME or "
            f"{catalogue.PREFIX}NAME, found {data.name!r}."
            f"{hub.hint('data.name', data.name)}"
        )


def named_lines(data: ConfigDict) -> dict[str, Iterator[str]]:
    """Return the lines of the column ``data.columns.text`` of a dataset by name.

    Returns:
      Lines by split, for the splits that the dataset has.

    Raises:
      InputError: the dataset cannot be loaded, or has no such column.
    """
    found, text = load(data, page="language-models"), data.columns.text
    chosen = data_hub.choose(found, dict(data.files))

    def read(split: str) -> Iterator[str]:
        for row in data_hub.rows(found, split, [text]):
            yield from str(row.fields[text] or "").removesuffix("\n").split("\n")

    for split in chosen.values():
        if text not in (there := found.splits[split].column_names):
            raise InputError(
                f"data.columns.text: expected a column of {found.text}, {split}: "
                f"{', '.join(there)}, found {text!r}.{suggest(text, there)}"
            )
    return {split: read(name) for split, name in chosen.items()}


def prepared(data: ConfigDict) -> Path:
    """Return the folder of a prepared text.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    return prepared_folder(data, instead=HUB)


def files(data: ConfigDict) -> dict[str, Path]:
    """Return the user's files by split.

    Raises:
      InputError: no training file, or a file is missing.
    """
    if not data.files.train:
        raise InputError(
            "data.files.train: expected the name of a text file, found none"
        )
    found = {s: Path(root(data), data.files[s]) for s in SPLITS if data.files[s]}
    for split, path in found.items():
        if not path.is_file():
            field = file_field(data, split)
            raise InputError(f"{field}: expected a file, found none at {path}")
        tables.check_text(path, f"data.files.{split}", tables=False)
    check_sizes(data)
    return found


def corpus(data: ConfigDict) -> Corpus:
    """Build a text and its vocabulary, by default learned from the training split.

    Raises:
      InputError: an empty text, unknown words and a vocabulary without <unk>, or the
        size of a split that a dataset by name has.
    """
    if data.name == "docstrings":
        texts: Mapping[str, Sequence[str]] = docstring_lines(data.split_seed)
    else:
        opened = (
            named_lines(data)
            if is_named(data.name)
            else {s: read_lines(p) for s, p in files(data).items()}
        )
        if is_named(data.name):
            data_hub.check_sizes(data, {split: split for split in opened})
        lines_of = {s: list(lines) for s, lines in opened.items()}
        texts = hold_out(lines_of, {s: data[s] for s in SPLITS[1:]})
        for split in texts.keys() - opened.keys() if is_named(data.name) else ():
            _logger.info(
                "%s: %d lines held out of %s", split, len(texts[split]), data.name
            )
    for split, lines in texts.items():
        if not any(line.strip() for line in lines):
            raise InputError(f"{split}: expected text, found none")
    made = token_files.make(vocabulary(data, texts["train"]), texts)
    if not is_named(data.name):
        return made
    return replace(made, provenance=made.provenance | dict(load(data).provenance))


def vocabulary(data: ConfigDict, lines: Sequence[str]) -> vocabularies.LineVocabulary:
    """Read the vocabulary of ``data.vocabulary``, or learn one if it is empty."""
    if data.vocabulary:
        return vocabularies.read(Path(data.vocabulary))
    return vocabularies.learn(data.tokens, lines, data.vocab_size, data.min_count)


def hold_out(
    texts: Mapping[str, Sequence[str]], sizes: Mapping[str, float | None] | None = None
) -> dict[str, Sequence[str]]:
    """Hold out missing splits from the end of the training text.

    Args:
      texts: lines by split, "train" at least.
      sizes: fraction of the characters (below 1) or number of lines by split; None
        is 5 %.

    Returns:
      "train", "validation" and "test".

    Raises:
      InputError: the training text is too short.
    """
    train = list(texts["train"])
    found: dict[str, Sequence[str]] = dict(texts)
    missing = [split for split in SPLITS if split not in texts]
    # Measured in characters because lines may be paragraphs or verses.
    ends = np.cumsum([len(line) + 1 for line in train])
    total = int(ends[-1]) if len(ends) else 0
    stop, share = len(train), 0.0
    for split in reversed(missing):
        size = (sizes or {}).get(split)
        if size is not None and size >= 1:
            start = max(stop - int(size), 0) if size < stop else 0
            share = 1 - int(ends[start - 1]) / total if start else 1.0
        else:
            share += HELD_OUT if size is None else size
            start = int(np.searchsorted(ends, total * (1 - share), "right"))
        found[split] = train[start:stop]
        stop = start
        if size is not None and (start < 1 or not found[split]):
            raise InputError(
                f"data.{split}: expected a fraction or number of the {len(train)} "
                f"lines of data.files.train, found {size:g}, which leaves no lines"
            )
        if start < 1 or not found[split]:
            raise InputError(
                f"data.files.{split}: expected a file, or enough lines in "
                f"data.files.train to hold some out, found {len(train)} lines"
            )
    found["train"] = train[:stop]
    return found


def docstring_lines(split_seed: int) -> dict[str, Sequence[str]]:
    """Read the unique docstrings of numpy and scipy, each followed by a blank line.

    Docstrings that share a line are kept in one split, unless more than 20 docstrings
    have that line. So few lines of over 20 characters are in two splits.

    Args:
      split_seed: seed of the split assignment.

    Returns:
      Lines by split.
    """
    texts = sorted({d.text for package in PACKAGES for d in docstrings.read(package)})
    keys = [_long_lines(text) for text in texts]
    found = hold_out_groups(keys, HELD_OUT, 100, split_seed)
    return {
        split: [
            line
            for i in items
            for line in (*(x.rstrip() for x in texts[i].splitlines()), "")
        ]
        for split, items in found.items()
    }


def _long_lines(text: str) -> set[str]:
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) > _LINE}
