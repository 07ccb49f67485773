"""Texts to other texts: pieces, beam search, and texts again."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.data import lines, tables
from rdrop_jax.data.parallel import Form, Pairs
from rdrop_jax.data.parallel import texts as texts_of
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.decoding import many
from rdrop_jax.decoding.beam import Options
from rdrop_jax.decoding.cache import Cache
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.tasks.base import Predictor

# Batches that are sorted by length together.
_SORTED = 32


class Answer(NamedTuple):
    """Target texts for one source, best first.

    Attributes:
      texts: as the model writes them.
      scores: log-probability over the length penalty of each.
      notes: what was done to the source and to the best text, for the user.
      cut_short: the best one is as long as it may be.
    """

    texts: list[str]
    scores: list[float]
    notes: tuple[str, ...] = ()
    cut_short: bool = False


class FromData(str):
    """A text of the data, which is in their form already."""

    __slots__ = ()


class Ways(NamedTuple):
    """How a family goes about it.

    Attributes:
      options: of the search.
      limits: tokens of a source to the fewest and most of a target, its end not
        counted.
      longest: most positions of a target, its end counted.
      score: ``(answers, pairs) -> scores`` of a corpus.
      score_each: ``(answers, pairs) -> lists of scores`` of examples.
      prepare: a text of the data as the model reads it.
      read: a user's text in the form of the data.
      shown: a target in the form that users expect.
      misfit: the problem of the scores with the references of pairs; empty if there
        is none.
      unit: what messages call a source.
      empty: note on a source without any text; none where it says itself.
      cut_short: note on an answer as long as it may be; none where that is usual.
    """

    options: Options
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
      config: of the run.
      module: the model.
      vocabularies: of the run.
      ways: of the family.
    """

    def __init__(
        self,
        config: ConfigDict,
        module: Seq2Seq,
        vocabularies: Vocabularies,
        ways: Ways,
    ) -> None:
        self._config, self.vocabularies, self._ways = config, vocabularies, ways
        self._search = make_search(config, module, ways)
        self.read, self.shown = ways.read, ways.shown
        self.score, self.misfit = ways.score, ways.misfit

    def score_each(self, answers: list[Answer], pairs: Pairs) -> dict[str, list[float]]:
        """Scores of each example."""
        if self._ways.score_each is None:
            raise ValueError("these scores are of a corpus as a whole")
        return self._ways.score_each(answers, pairs)

    def translate(self, params: Params, texts: list[str]) -> list[Answer]:
        """Answers for texts in the form of the training data.

        Args:
          params: of the model.
          texts: sources; an empty one stays empty.

        Returns:
          An answer for each, in order.

        Raises:
          InputError: a source that is too long, where that is refused.
        """
        prepared, notes = self._prepared(texts)
        blank = 1 + (self.vocabularies.source.special.bos is not None)
        kept = [row for row, ids in enumerate(prepared) if len(ids) > blank]
        limits = [self._ways.limits(len(prepared[row])) for row in kept]
        found = self._search(
            params,
            [prepared[row] for row in kept],
            [most for _, most in limits],
            [fewest for fewest, _ in limits],
        )
        answers = [Answer([""], [0.0], self._ways.empty) for _ in texts]
        decode = self.vocabularies.target.decode
        for row, hypotheses, (_, most) in zip(kept, found, limits, strict=True):
            full = bool(hypotheses.tokens) and len(hypotheses.tokens[0]) >= most
            answers[row] = Answer(
                [decode(ids) for ids in hypotheses.tokens] or [""],
                hypotheses.scores or [0.0],
                (*notes[row], *(self._ways.cut_short if full else ())),
                full,
            )
        return answers

    def _prepared(
        self, texts: list[str]
    ) -> tuple[list[list[int]], list[tuple[str, ...]]]:
        data, vocabulary = self._config.data, self.vocabularies.source
        texts = [self._ways.prepare(text) for text in texts]
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
                        f"--input: expected no longer {self._ways.unit} than the "
                        f"model's, found {found} in {text[:40]!r}"
                    )
                said.append(f"cut: {found}")
            prepared.append([*ids[: data.max_length - 1], vocabulary.special.eos])
            notes.append(tuple(said))
        return prepared, notes

    @property
    def chunk(self) -> int:
        """How many sources to answer at once."""
        return int(self._config.eval.batch_size) * _SORTED


def make_search(config: ConfigDict, module: Seq2Seq, ways: Ways) -> many.Search:
    """Beam search with the options of a family."""
    rows, sources = config.eval.batch_size, config.data.max_length
    shapes = many.Shapes()
    shapes = many.Shapes(
        # Few left of a large batch go on in one of a quarter.
        rows=(rows // 4, rows) if rows >= 16 else (rows,),
        sources=(*(n for n in shapes.sources if n < sources), sources),
        rooms=(*(n for n in shapes.rooms if n < ways.longest), ways.longest),
    )

    def encode(module: Seq2Seq, src: jax.Array, where: jax.Array, length: int) -> Cache:
        return module.init_cache(module.encode(src, where), where, length)

    def start(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=encode)

    def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
        return module.apply({"params": params}, ids, cache, method="decode_step")

    return many.make_search(start, step, ways.options, shapes)


def make_predictor(
    translator: Translator,
    split: Callable[[str], Pairs],
    form: Form,
    column: str,
) -> Predictor:
    """Answers for texts, in their order.

    Args:
      translator: of the run.
      split: pairs by the name of a split.
      form: of the texts of the run.
      column: of the texts in a table.
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
    """Texts of a table, or lines of a text file or of standard input.

    Args:
      path: table, text file, or "-".
      column: of the texts in a table.
      form: of these texts; None takes that of training files of this format.

    Raises:
      InputError: no such file or column, or a line that is not UTF-8.
    """
    if path == "-" or not tables.is_table(Path(path)):
        yield from read_lines(path)
        return
    for (sentences,) in texts_of(Path(path), [column], form):
        yield " ".join(sentences)


def read_lines(path: str, *, with_tables: bool = True) -> Iterator[str]:
    """Lines of a text file, gzipped or not, or of standard input for "-".

    Args:
      path: file.
      with_tables: the task reads tables too, which a message then lists.

    Raises:
      InputError: no such file, one of another format, or a line that is not UTF-8.
    """
    if path != "-":
        if not Path(path).is_file():
            raise InputError(f"--input: no file {path!r}")
        tables.check_text(Path(path), "--input", tables=with_tables)
        found = lines.read(Path(path))
    else:
        found = lines.decoded(sys.stdin.buffer, "--input")
    yield from (line.strip() for line in found)
