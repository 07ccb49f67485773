"""Summarization datasets by name: location and splits. Needs no jax."""

import functools
import hashlib

from ml_collections import ConfigDict

from rdrop_jax.data import catalogue, docstrings
from rdrop_jax.data.datasets import is_named
from rdrop_jax.data.splits import hold_out_groups
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.tasks.seq2seq import pair_sets
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs

# Prepared by version 0.1, whose runs resume from it, and the same on the Hub.
PREPARED, HUB = "cnn_dailymail", "hf:abisee/cnn_dailymail/3.0.0"
# Endings of the files of a prepared corpus.
ENDINGS = ("article", "highlights")
PAGE = "summarization"
# The embedded default.
PACKAGES = ("numpy", "scipy", "sklearn")
_HELD_OUT = 0.06
_SUMMARY, _BODY = (20, 120), (80, 600)  # characters


def find(data: ConfigDict, commit: str = "") -> PairSet:
    """Find the dataset that a config names.

    Args:
      data: the config's ``data``.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      The dataset, of which only the index is read.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    if data.name == "docstrings":
        return _docstrings(data.split_seed)
    if data.name == "files":
        return pair_sets.files(data, ("source", "target"))
    if data.name == PREPARED:
        return pair_sets.prepared(data, ENDINGS, instead=HUB)
    if is_named(data.name):
        return pair_sets.named(data, None, commit, PAGE)
    raise InputError(
        f"data.name: expected docstrings, files, {hub.PREFIX}ORG/NAME or "
        f"{catalogue.PREFIX}NAME, found {data.name!r}."
        f"{hub.hint('data.name', data.name)}"
    )


def _docstrings(split_seed: int) -> PairSet:
    for package in PACKAGES:
        docstrings.root(package)

    read = functools.partial(docstring_pairs, split_seed)

    def provenance() -> dict[str, str]:
        rows = [
            f"{name}\t{source}\t{target}"
            for name, pairs in read().items()
            for source, target in zip(pairs.source, pairs.target, strict=True)
        ]
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return {f"docstrings of {', '.join(PACKAGES)}": digest}

    return pair_sets.computed(read, provenance)


@functools.cache  # seconds of parsing
def docstring_pairs(split_seed: int) -> dict[str, Pairs]:
    """Build pairs of a docstring's body and its summary line.

    Docstrings that share a summary or the beginning of a body are in one split.

    Args:
      split_seed: seed of the split assignment.

    Returns:
      Pairs by split; bodies are unique and truncated to 600 characters.
    """
    found: dict[str, str] = {}
    for package in PACKAGES:
        for doc in docstrings.read(package):
            first, _, rest = doc.text.partition("\n\n")
            summary, body = (" ".join(part.split()) for part in (first, rest))
            fits = _SUMMARY[0] <= len(summary) <= _SUMMARY[1]
            if fits and len(body) >= _BODY[0]:
                found.setdefault(body[: _BODY[1]], summary)
    rows = sorted(found.items())
    keys = [{body[:60], summary} for body, summary in rows]
    chosen = hold_out_groups(keys, _HELD_OUT, 10, split_seed)
    return {
        name: Pairs(
            [rows[i][0] for i in sorted(kept)],
            [rows[i][1] for i in sorted(kept)],
            f"docstrings, {name}",
        )
        for name, kept in chosen.items()
    }


check_data = functools.partial(pair_sets.check_data, find=find, ending=".jsonl")
