"""Translation datasets by name: location and splits. Needs no jax."""

import functools

from ml_collections import ConfigDict

from rdrop_jax.data import catalogue
from rdrop_jax.data.datasets import is_named
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.tasks.seq2seq import pair_sets, prepared_text
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.translation import cldr

# Prepared by version 0.1, whose runs resume from them, and the same on the Hub.
_IWSLT17 = "hf:IWSLT/iwslt2017/iwslt2017-{}@refs/convert/parquet"
HUB = {
    "iwslt17_fr_en": _IWSLT17.format("fr-en"),
    "iwslt17_zh_en": _IWSLT17.format("zh-en"),
    "wmt14_en_de": "hf:wmt/wmt14/de-en",
    "wmt14_en_fr": "hf:wmt/wmt14/fr-en",
}


def find(data: ConfigDict, commit: str = "") -> PairSet:
    """Find the corpus that a config names.

    Args:
      data: the config's ``data``.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      The corpus, of which only the index is read.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    if data.name == "cldr_names":
        return _cldr(data)
    if data.name == "files":
        return pair_sets.files(data, (data.source, data.target))
    if data.name in prepared_text.NAMES:
        return _of_languages(data)
    if is_named(data.name):
        return pair_sets.named(data, (data.source, data.target), commit)
    raise InputError(
        "data.name: expected one of cldr_names, files, "
        f"{', '.join(n for n in prepared_text.NAMES if n not in HUB)}, or "
        f"{catalogue.PREFIX}NAME or "
        f"{hub.PREFIX}ORG/NAME, found {data.name!r}.{hub.hint('data.name', data.name)}"
    )


def _cldr(data: ConfigDict) -> PairSet:
    cldr.check_languages(data.source, data.target)

    def read() -> dict[str, Pairs]:
        return cldr.names(data.source, data.target, data.split_seed)

    return pair_sets.computed(read, lambda: {"cldr_names": cldr.sha256(read())})


def _of_languages(data: ConfigDict) -> PairSet:
    languages = data.name.split("_")[1:]
    if sorted(languages) != sorted((data.source, data.target)):
        raise InputError(
            f"data.source, data.target: expected {' and '.join(languages)}, the "
            f"languages of {data.name}, found {data.source!r} and {data.target!r}"
        )
    endings = (data.source, data.target)
    note = (
        f"DOWNLOADS has {'-'.join(languages)}.tgz of release 2014-01 of WIT3, "
        "https://wit3.fbk.eu: IWSLT14 has no official copy on the Hub"
    )
    return pair_sets.prepared(data, endings, note=note, instead=HUB.get(data.name, ""))


check_data = functools.partial(pair_sets.check_data, find=find)
