"""IWSLT14 corpora of the paper, tokenized and cleaned from raw downloads.

TED talks of WIT3, processed like fairseq's prepare-iwslt14.sh: lower-cased Moses
tokens, 1 to 175 per sentence, length ratio at most 1.5. Every 23rd pair is validation;
the evaluation sets together are the test set. The script is for De-En. The paper does
not describe Es-En, which gets the same processing without lower-casing. The recipe
stays because this preprocessing defines the paper's splits, and IWSLT14 has no official
copy on the Hub.
"""

import functools
import itertools
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rdrop_jax.errors import InputError
from rdrop_jax.files.downloads import Downloads
from rdrop_jax.tasks.seq2seq.prepared_text import Writer
from rdrop_jax.tasks.translation import moses

Pair = tuple[str, str]
_logger = logging.getLogger(__name__)
_CHUNK = 2_000
_EVERY = 23
_LONGEST = 175  # words of a sentence
# Counts may differ slightly between versions of the tokenizer.
_TOLERANCE = 0.01
_TAG = re.compile(r"</?(title|description)>")
_MARKUP = re.compile(r"\s*<(url|talkid|keywords|speaker|reviewer|translator|doc|/doc)")


@dataclass(frozen=True)
class Recipe:
    """Source and processing of a corpus.

    Attributes:
      languages: source and target language codes, as in file names.
      origin: site that publishes the archives.
      lowercase: lower-case the text, as the paper does for De-En.
      pairs: expected number of pairs in each split, None if not published.
    """

    languages: tuple[str, str]
    origin: str
    lowercase: bool = False
    pairs: tuple[int | None, int | None, int | None] = (None, None, None)


_WIT3 = "WIT3, https://wit3.fbk.eu"
RECIPES = {
    "iwslt14_de_en": Recipe(
        ("de", "en"), _WIT3, lowercase=True, pairs=(160_239, 7_283, 6_750)
    ),
    "iwslt14_es_en": Recipe(("es", "en"), _WIT3),
}


def prepare(folder: Path, files: list[Path]) -> Path:
    """Write a corpus in the format that training reads.

    Args:
      folder: output folder, named like the recipe.
      files: archives or folders with the raw files.

    Returns:
      The folder.

    Raises:
      InputError: a raw file is missing or differs from the published one.
    """
    moses.check_installed(folder.name)
    recipe, downloads = RECIPES[folder.name], Downloads(files)
    writer = Writer(folder, recipe.languages)
    # Spawn, not fork: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        tokenize = functools.partial(_tokenized, pool, recipe)
        counts = _iwslt(recipe, downloads, writer, tokenize)
    for split, count, wanted in zip(
        ("train", "validation", "test"), counts, recipe.pairs, strict=True
    ):
        _logger.info("%s: %d pairs", split, count)
        if wanted is not None and abs(count - wanted) > _TOLERANCE * wanted:
            raise InputError(
                f"--from: expected about {wanted} pairs in {split}, as published, "
                f"found {count}. Use the complete files of the published release."
            )
    return writer.finish({"origin": recipe.origin, "moses": True})


Tokenize = Callable[[Iterator[Pair]], Iterator[Pair]]


def _iwslt(
    recipe: Recipe, downloads: Downloads, writer: Writer, tokenize: Tokenize
) -> list[int]:
    code = "-".join(recipe.languages)
    names = [
        downloads.one(rf"train\.tags\.{code}\.{language}", recipe.origin)
        for language in recipe.languages
    ]
    talks = (_talk_lines(downloads.lines(name)) for name in names)
    pairs = _zipped(names, talks)
    cleaned = moses.clean(tokenize(pairs), longest=_LONGEST)
    counts = [0, 0]
    with writer.open("train") as train, writer.open("validation") as validation:
        for number, pair in enumerate(cleaned, 1):
            held = number % _EVERY == 0
            (validation if held else train)(*pair)
            counts[held] += 1
    ends = [rf"IWSLT\S*\.{code}\.{language}\.xml" for language in recipe.languages]
    downloads.one(ends[0], recipe.origin)
    sets = [downloads.find(end) for end in ends]
    segments = (
        itertools.chain.from_iterable(map(downloads.segments, names)) for names in sets
    )
    return [*counts, writer.write("test", tokenize(_zipped(sets[0], segments)))]


def _talk_lines(lines: Iterator[str]) -> Iterator[str]:
    """Yield sentences, titles and descriptions, without lines of markup."""
    for line in lines:
        if not _MARKUP.match(line):
            yield _TAG.sub("", line)


def _zipped(names: list[str], sides: Iterator[Iterator[str]]) -> Iterator[Pair]:
    """Yield pairs of lines; raise an `InputError` if the line counts differ."""
    for number, (one, other) in enumerate(itertools.zip_longest(*sides), 1):
        if one is None or other is None:
            raise InputError(
                f"--from: {names[0]}: expected as many lines in both languages, found "
                f"no partner for line {number}"
            )
        yield one, other


def _tokenized(
    pool: ProcessPoolExecutor,
    recipe: Recipe,
    pairs: Iterator[Pair],
) -> Iterator[Pair]:
    """Tokenize pairs in several processes, in order, a few chunks ahead."""
    work = functools.partial(_tokenize_chunk, recipe.languages, recipe.lowercase)
    done, pending = 0, []
    ahead = 2 * (os.cpu_count() or 1)
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        pending.append(pool.submit(work, chunk))
        if len(pending) > ahead:
            yield from pending.pop(0).result()
        done += len(chunk)
        if done % (100 * _CHUNK) == 0:
            _logger.info("%d pairs read", done)
    for future in pending:
        yield from future.result()


def _tokenize_chunk(
    languages: tuple[str, str], lowercase: bool, pairs: list[Pair]
) -> list[Pair]:
    one, other = (_tokenizer(language, lowercase) for language in languages)
    return [(one(a), other(b)) for a, b in pairs]


@functools.cache
def _tokenizer(language: str, lowercase: bool) -> Callable[[str], str]:
    return moses.make_tokenize(language, lowercase=lowercase)
