"""Text-to-text prediction: tokenization, beam search and detokenization."""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.data import tables
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.decoding import batched_search
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.errors import InputError, nan_outputs
from rdrop_jax.files import lines
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.tasks.seq2seq import pair_sets
from rdrop_jax.tasks.seq2seq.parallel import Form, Pairs
from rdrop_jax.tasks.seq2seq.parallel import texts as texts_of
from rdrop_jax.training.task import Predictor

# Number of batches whose sources are sorted by length together.
_SORTED = 32


class Answer(NamedTuple):
    """Target texts for one source, best first.

    Attributes:
      texts: decoded hypotheses, before `Seq2SeqSpec.postprocess`.
      scores: log-probability divided by the length penalty, for each hypothesis.
      notes: messages to the user about the source and the best hypothesis.
      cut_short: True if the best hypothesis has the maximum length.
    """

    texts: list[str]
    scores: list[float]
    notes: tuple[str, ...] = ()
    cut_short: bool = False


# ``(params, texts) -> answers``
Translate = Callable[[Params, list[str]], list[Answer]]


class FromData(str):
    """A text from a data split, which already has the format of the data."""

    __slots__ = ()


@dataclass(frozen=True)
class Seq2SeqSpec:
    """Model, text processing and generation settings of a sequence-to-sequence task.

    Attributes:
      make_model: makes the model that a config describes.
      vocabularies: source and target vocabularies.
      search: beam-search options.
      limits: maps the number of source tokens to the minimum and maximum number of
        target tokens, without the end token.
      preprocess: converts a user's text to the format of the data.
      postprocess: converts a target text to the format shown to users.
      empty_note: note for a source without text; may be empty.
      full_note: note for an answer of maximum length; may be empty.
    """

    make_model: Callable[[ConfigDict], Seq2Seq]
    vocabularies: Vocabularies
    search: SearchOptions
    limits: Callable[[int], tuple[int, int]]
    preprocess: Callable[[str], str] = str
    postprocess: Callable[[str], str] = str
    empty_note: str = ""
    full_note: str = ""


def search_options(
    config: ConfigDict, vocabularies: Vocabularies, **options: Any
) -> SearchOptions:
    """Return the beam-search options of a config.

    Args:
      config: config of the run.
      vocabularies: vocabularies of the run.
      options: further fields of `SearchOptions`.
    """
    score, special = config.eval, vocabularies.target.special
    return SearchOptions(
        bos=special.start,
        eos=special.eos,
        pad=special.pad,
        beam=score.beam,
        n_best=score.n_best,
        length_penalty=score.length_penalty,
        forbid=(special.unk,),
        **options,
    )


def make_translate(config: ConfigDict, spec: Seq2SeqSpec) -> Translate:
    """Make a function that translates texts; searches are compiled once per shape.

    Args:
      config: config of the run.
      spec: specification of the task.

    Returns:
      ``(params, texts) -> answers``, one per text, in order. The texts have the format
      of the training data; an empty text gives an empty answer. It raises an
      `InputError` if a text is too long and ``data.overlong`` is "refuse".
    """
    search = _make_search(config, spec)
    special = spec.vocabularies.source.special
    blank = 1 + (special.bos is not None)

    def translate(params: Params, texts: list[str]) -> list[Answer]:
        prepared, notes = _encode_sources(config, spec, texts)
        kept = [row for row, ids in enumerate(prepared) if len(ids) > blank]
        limits = [spec.limits(len(prepared[row])) for row in kept]
        found = search(
            params,
            [prepared[row] for row in kept],
            [most for _, most in limits],
            [fewest for fewest, _ in limits],
        )
        empty = (spec.empty_note,) if spec.empty_note else ()
        answers = [Answer([""], [0.0], empty) for _ in texts]
        decode = spec.vocabularies.target.decode
        for row, hypotheses, (_, most) in zip(kept, found, limits, strict=True):
            full = bool(hypotheses.tokens) and len(hypotheses.tokens[0]) >= most
            answers[row] = Answer(
                [decode(ids) for ids in hypotheses.tokens] or [""],
                hypotheses.scores or [0.0],
                (*notes[row], *([spec.full_note] if full and spec.full_note else ())),
                full,
            )
        return answers

    return translate


def _encode_sources(
    config: ConfigDict, spec: Seq2SeqSpec, texts: list[str]
) -> tuple[list[list[int]], list[list[str]]]:
    """Return the ids of each text, truncated, and notes on each."""
    data, vocabulary = config.data, spec.vocabularies.source
    if data.get("lowercase"):
        texts = [text.lower() for text in texts]
    prepared, notes = [], []
    for text, ids in zip(texts, vocabulary.encode(texts), strict=True):
        found = []
        if vocabulary.special.unk in ids:
            found.append(f"unknown to the vocabulary: {vocabulary.unknown(text)}")
        if len(ids) >= data.max_length:
            size = f"{len(ids) + 1} tokens"
            if data.overlong == "refuse":
                raise InputError(
                    f"--input: expected at most data.max_length={data.max_length} "
                    f"tokens, found {size} in {text[:40]!r}"
                )
            found.append(f"truncated: {size}, data.max_length={data.max_length}")
        prepared.append([*ids[: data.max_length - 1], vocabulary.special.eos])
        notes.append(found)
    return prepared, notes


def _make_search(config: ConfigDict, spec: Seq2SeqSpec) -> batched_search.Search:
    """Make the beam search of a task."""
    module = spec.make_model(config)
    source = config.data.max_length
    shapes = batched_search.choose_shapes(
        config.eval.batch_size, source, spec.limits(source)[1] + 1
    )

    return batched_search.make_search(*search_stages(module), spec.search, shapes)


def search_stages(
    module: Seq2Seq,
) -> tuple[batched_search.Start, batched_search.Step]:
    """Return the start and the step of a search, for `batched_search.make_search`."""

    def encode(module: Seq2Seq, src: jax.Array, where: jax.Array, length: int) -> Cache:
        return module.init_cache(module.encode(src, where), where, length)

    def start(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=encode)

    def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
        return module.apply({"params": params}, ids, cache, method="decode_step")

    return start, step


def make_predictor(
    config: ConfigDict,
    spec: Seq2SeqSpec,
    translate: Translate,
    split: Callable[[str], Pairs],
) -> Predictor:
    """Make a predictor that translates texts in order.

    Args:
      config: config of the run.
      spec: specification of the task.
      translate: result of `make_translate`.
      split: ``name -> pairs`` of a split.
    """
    form = pair_sets.form(config.data)

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        waiting = iter(inputs)
        while chunk := list(
            itertools.islice(waiting, config.eval.batch_size * _SORTED)
        ):
            bad = [x for x in chunk if not isinstance(x, str)]
            if bad:
                raise InputError(f"--input: expected texts, found {bad[0]!r}")
            chunk = [
                text if isinstance(text, FromData) else form(text) for text in chunk
            ]
            texts = [
                str(text) if isinstance(text, FromData) else spec.preprocess(text)
                for text in chunk
            ]
            for text, answer in zip(chunk, translate(params, texts), strict=True):
                if any(map(math.isnan, answer.scores)):
                    raise nan_outputs()
                hypotheses = [
                    {"text": spec.postprocess(found), "score": round(score, 4)}
                    for found, score in zip(answer.texts, answer.scores, strict=True)
                ]
                shown: dict[str, Any] = {"source": str(text), **hypotheses[0]}
                if len(hypotheses) > 1:
                    shown["n_best"] = hypotheses
                if answer.notes:
                    shown["notes"] = list(answer.notes)
                yield shown

    return Predictor(
        read=lambda path: read_texts(
            path, config.data.columns.source, form, config.data.quoting
        ),
        rows=lambda name: map(FromData, split(name).source),
        run=run,
        text=lambda answer: " ".join(str(answer["text"]).splitlines()),
    )


def read_texts(
    path: str, column: str, form: Form | None = None, quoting: str = "none"
) -> Iterator[str]:
    """Read texts of a table, or lines of a text file or standard input.

    Args:
      path: table, text file, or "-".
      column: table column that holds the texts.
      form: text format; None selects that of training files of this file type.
      quoting: one of `tables.QUOTING`.

    Raises:
      InputError: the file or column is missing, or a line is not UTF-8.
    """
    if path == "-" or not tables.is_table(Path(path)):
        yield from read_lines(path)
        return
    for (sentences,) in texts_of(Path(path), [column], form, quoting):
        yield " ".join(sentences)


def read_lines(
    path: str, *, with_tables: bool = True, strip: bool = True
) -> Iterator[str]:
    """Read lines of a text file, plain or gzipped, or of standard input for "-".

    Args:
      path: path of the file, or "-".
      with_tables: True if the task also reads tables; error messages list them.
      strip: remove white space at both ends of each line.

    Raises:
      InputError: the file is missing, is not a text file, or has a line that is not
        UTF-8.
    """
    if path != "-":
        if not Path(path).is_file():
            raise InputError(f"--input: no file {path!r}")
        tables.check_text(Path(path), "--input", tables=with_tables)
        found = lines.read(Path(path))
    else:
        found = lines.decoded(sys.stdin.buffer, "--input")
    yield from (line.strip() if strip else line for line in found)
