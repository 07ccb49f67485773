"""Text-to-text prediction: tokenization, beam search and detokenization."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.data import tables
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.decoding import batched_search
from rdrop_jax.decoding.options import SearchOptions
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.tasks.seq2seq.parallel import Form, Pairs
from rdrop_jax.tasks.seq2seq.parallel import texts as texts_of
from rdrop_jax.training.task import Predictor

# Number of batches whose sources are sorted by length together.
_SORTED = 32


class Answer(NamedTuple):
    """Target texts for one source, best first.

    Attributes:
      texts: decoded hypotheses, before `GenerationSettings.shown`.
      scores: log-probability divided by the length penalty, for each hypothesis.
      notes: messages to the user about the source and the best hypothesis.
      cut_short: True if the best hypothesis has the maximum length.
    """

    texts: list[str]
    scores: list[float]
    notes: tuple[str, ...] = ()
    cut_short: bool = False


class FromData(str):
    """A text from a data split, which already has the format of the data."""

    __slots__ = ()


class GenerationSettings(NamedTuple):
    """Generation settings and text hooks of a sequence-to-sequence task.

    Attributes:
      options: beam-search options.
      limits: maps the number of source tokens to the minimum and maximum number of
        target tokens, without the end token.
      longest: maximum number of target positions, including the end token.
      score: ``(answers, pairs) -> scores`` of a corpus.
      score_each: ``(answers, pairs) -> lists of scores`` per example.
      prepare: converts a text of the data to model input.
      read: converts a user's text to the format of the data.
      shown: converts a target text to the format shown to users.
      misfit: ``pairs -> problem`` of the scores with the references; empty if there is
        none.
      unit: noun for a source text in messages.
      empty: notes for a source without text; may be empty.
      cut_short: notes for an answer of maximum length; may be empty.
    """

    options: SearchOptions
    limits: Callable[[int], tuple[int, int]]
    longest: int
    score: Callable[[list[Answer], Pairs], dict[str, float]]
    score_each: Callable[[list[Answer], Pairs], dict[str, list[float]]] | None = None
    prepare: Callable[[str], str] = str
    read: Callable[[str], str] = str
    shown: Callable[[str], str] = str
    misfit: Callable[[Pairs], str] = lambda pairs: ""
    unit: str = "sentence"
    empty: tuple[str, ...] = ()
    cut_short: tuple[str, ...] = ()


class Translator:
    """A model with its vocabularies; searches are compiled once per shape.

    Args:
      config: config of the run.
      module: the model.
      vocabularies: vocabularies of the run.
      settings: generation settings and text hooks of the task.
    """

    def __init__(
        self,
        config: ConfigDict,
        module: Seq2Seq,
        vocabularies: Vocabularies,
        settings: GenerationSettings,
    ) -> None:
        self._config, self.vocabularies, self._settings = config, vocabularies, settings
        self._search = make_search(config, module, settings)
        self.read, self.shown = settings.read, settings.shown
        self.score, self.misfit = settings.score, settings.misfit

    def score_each(self, answers: list[Answer], pairs: Pairs) -> dict[str, list[float]]:
        """Compute the scores of each example."""
        if self._settings.score_each is None:
            raise ValueError("these scores are of a corpus as a whole")
        return self._settings.score_each(answers, pairs)

    def translate(self, params: Params, texts: list[str]) -> list[Answer]:
        """Translate texts that have the format of the training data.

        Args:
          params: parameters of the model.
          texts: source texts; an empty source gives an empty target.

        Returns:
          One answer per source, in order.

        Raises:
          InputError: a source is too long and ``data.overlong`` is "refuse".
        """
        prepared, notes = self._prepared(texts)
        blank = 1 + (self.vocabularies.source.special.bos is not None)
        kept = [row for row, ids in enumerate(prepared) if len(ids) > blank]
        limits = [self._settings.limits(len(prepared[row])) for row in kept]
        found = self._search(
            params,
            [prepared[row] for row in kept],
            [most for _, most in limits],
            [fewest for fewest, _ in limits],
        )
        answers = [Answer([""], [0.0], self._settings.empty) for _ in texts]
        decode = self.vocabularies.target.decode
        for row, hypotheses, (_, most) in zip(kept, found, limits, strict=True):
            full = bool(hypotheses.tokens) and len(hypotheses.tokens[0]) >= most
            answers[row] = Answer(
                [decode(ids) for ids in hypotheses.tokens] or [""],
                hypotheses.scores or [0.0],
                (*notes[row], *(self._settings.cut_short if full else ())),
                full,
            )
        return answers

    def _prepared(
        self, texts: list[str]
    ) -> tuple[list[list[int]], list[tuple[str, ...]]]:
        data, vocabulary = self._config.data, self.vocabularies.source
        texts = [self._settings.prepare(text) for text in texts]
        prepared, notes = [], []
        encoded = vocabulary.encode(texts)
        for text, ids in zip(texts, encoded, strict=True):
            said = []
            if vocabulary.special.unk in ids:
                unknown = vocabulary.unknown(text)
                said.append(f"unknown to the vocabulary: {unknown}")
            if len(ids) >= data.max_length:
                found = f"{len(ids) + 1} tokens, data.max_length={data.max_length}"
                if data.overlong == "refuse":
                    raise InputError(
                        f"--input: expected no longer {self._settings.unit} than the "
                        f"model's, found {found} in {text[:40]!r}"
                    )
                said.append(f"cut: {found}")
            prepared.append([*ids[: data.max_length - 1], vocabulary.special.eos])
            notes.append(tuple(said))
        return prepared, notes

    @property
    def chunk(self) -> int:
        """Number of sources to translate at once."""
        return int(self._config.eval.batch_size) * _SORTED


def make_search(
    config: ConfigDict, module: Seq2Seq, settings: GenerationSettings
) -> batched_search.Search:
    """Make the beam search of a task."""
    rows, sources = config.eval.batch_size, config.data.max_length
    shapes = batched_search.Shapes()
    shapes = batched_search.Shapes(
        # The last few sources of a large batch use a batch of a quarter of its size.
        rows=(rows // 4, rows) if rows >= 16 else (rows,),
        sources=(*(n for n in shapes.sources if n < sources), sources),
        cache_lengths=(
            *(n for n in shapes.cache_lengths if n < settings.longest),
            settings.longest,
        ),
    )

    def encode(module: Seq2Seq, src: jax.Array, where: jax.Array, length: int) -> Cache:
        return module.init_cache(module.encode(src, where), where, length)

    def start(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=encode)

    def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
        return module.apply({"params": params}, ids, cache, method="decode_step")

    return batched_search.make_search(start, step, settings.options, shapes)


def make_predictor(
    translator: Translator,
    split: Callable[[str], Pairs],
    form: Form,
    column: str,
) -> Predictor:
    """Make a predictor that translates texts in order.

    Args:
      translator: translator of the run.
      split: ``name -> pairs`` of a split.
      form: text format of the run.
      column: table column that holds the texts.
    """

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        waiting = iter(inputs)
        while chunk := list(itertools.islice(waiting, translator.chunk)):
            bad = [x for x in chunk if not isinstance(x, str)]
            if bad:
                raise InputError(f"--input: expected texts, found {bad[0]!r}")
            chunk = [
                text if isinstance(text, FromData) else form(text) for text in chunk
            ]
            texts = [
                str(text) if isinstance(text, FromData) else translator.read(text)
                for text in chunk
            ]
            for text, answer in zip(
                chunk, translator.translate(params, texts), strict=True
            ):
                shown = [translator.shown(text) for text in answer.texts]
                found: dict[str, Any] = {
                    "source": str(text),
                    "text": shown[0],
                    "score": round(answer.scores[0], 4),
                }
                if len(shown) > 1:
                    found["n_best"] = [
                        {"text": text, "score": round(score, 4)}
                        for text, score in zip(shown, answer.scores, strict=True)
                    ]
                if answer.notes:
                    found["notes"] = list(answer.notes)
                yield found

    return Predictor(
        read=lambda path: read_texts(path, column, form),
        rows=lambda name: map(FromData, split(name).source),
        run=run,
        text=lambda answer: str(answer["text"]),
    )


def read_texts(path: str, column: str, form: Form | None = None) -> Iterator[str]:
    """Read texts of a table, or lines of a text file or standard input.

    Args:
      path: table, text file, or "-".
      column: table column that holds the texts.
      form: text format; None selects that of training files of this file type.

    Raises:
      InputError: the file or column is missing, or a line is not UTF-8.
    """
    if path == "-" or not tables.is_table(Path(path)):
        yield from read_lines(path)
        return
    for (sentences,) in texts_of(Path(path), [column], form):
        yield " ".join(sentences)


def read_lines(path: str, *, with_tables: bool = True) -> Iterator[str]:
    """Read lines of a text file, plain or gzipped, or of standard input for "-".

    Args:
      path: path of the file, or "-".
      with_tables: True if the task also reads tables; error messages list them.

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
    yield from (line.strip() for line in found)
