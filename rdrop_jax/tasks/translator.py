"""Texts to translations: pieces, beam search, and texts again."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.data import moses, parallel
from rdrop_jax.data.parallel import Pairs
from rdrop_jax.data.tokenizers import EOS, PAD, UNK, Vocabularies
from rdrop_jax.decoding import many
from rdrop_jax.decoding.beam import Options
from rdrop_jax.decoding.cache import Cache
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.scoring import translation as scoring
from rdrop_jax.tasks.base import Predictor

# Batches that are sorted by length together.
_SORTED = 32


class Answer(NamedTuple):
    """Translations of one sentence, best first.

    Attributes:
      texts: as the model writes them.
      scores: log-probability over the length penalty of each.
      notes: what was done to the sentence, for the user.
    """

    texts: list[str]
    scores: list[float]
    notes: tuple[str, ...] = ()


class Translator:
    """A model with its vocabularies; searches are compiled once per shape.

    Args:
      config: of the run.
      module: the model.
      vocabularies: of the run.
    """

    def __init__(
        self, config: ConfigDict, module: Seq2Seq, vocabularies: Vocabularies
    ) -> None:
        self._config, self._vocabularies = config, vocabularies
        self._search = make_search(config, module)
        data = config.data
        self._tokenize: Callable[[str], str] = lambda text: text
        self._detokenize: Callable[[str], str] = lambda text: text
        if data.moses:
            self._tokenize = moses.make_tokenize(data.source)
            self._detokenize = moses.make_detokenize(data.target)

    def translate(self, params: Params, texts: list[str]) -> list[Answer]:
        """Translates sentences in the form of the training data.

        Args:
          params: of the model.
          texts: tokenised and lower-cased as the training data; an empty one stays
            empty.

        Returns:
          An answer for each, in order.

        Raises:
          InputError: a sentence that is too long, where that is refused.
        """
        prepared, notes = self._prepared(texts)
        kept = [row for row, ids in enumerate(prepared) if len(ids) > 1]
        found = self._search(
            params,
            [prepared[row] for row in kept],
            [self._limit(len(prepared[row])) for row in kept],
        )
        answers = [Answer([""], [0.0]) for _ in texts]
        decode = self._vocabularies.target.decode
        for row, hypotheses in zip(kept, found, strict=True):
            answers[row] = Answer(
                [decode(ids) for ids in hypotheses.tokens] or [""],
                hypotheses.scores or [0.0],
                notes[row],
            )
        return answers

    def _prepared(
        self, texts: list[str]
    ) -> tuple[list[list[int]], list[tuple[str, ...]]]:
        data, vocabulary = self._config.data, self._vocabularies.source
        if data.lowercase:
            texts = [text.lower() for text in texts]
        prepared, notes = [], []
        encoded = vocabulary.encode(texts)
        for text, ids in zip(texts, encoded, strict=True):
            said = []
            if UNK in ids:
                unknown = vocabulary.unknown(text)
                said.append(f"unknown to the vocabulary: {unknown}")
            if len(ids) >= data.max_length:
                found = f"{len(ids) + 1} tokens, data.max_length={data.max_length}"
                if data.overlong == "refuse":
                    raise InputError(
                        f"--input: expected no longer sentence than the model's, found "
                        f"{found} in {text[:40]!r}"
                    )
                said.append(f"cut: {found}")
            prepared.append([*ids[: data.max_length - 1], EOS])
            notes.append(tuple(said))
        return prepared, notes

    def _limit(self, source: int) -> int:
        score, longest = self._config.eval, self._config.data.max_length - 1
        return min(longest, int(score.max_length_a * source + score.max_length_b))

    def read(self, text: str) -> str:
        """A user's text in the form of the training data."""
        return self._tokenize(text)

    def shown(self, text: str) -> str:
        """A translation in the form that users expect."""
        return self._detokenize(text)

    def score(self, hypotheses: list[str], references: list[str]) -> dict[str, float]:
        """BLEU, chrF and exact match, as ``eval.bleu`` says."""
        data, tokenize = self._config.data, self._config.eval.bleu
        if data.lowercase:
            references = [text.lower() for text in references]
        if tokenize not in ("none", "compound"):
            hypotheses, references = (
                [self.shown(text) for text in side] for side in (hypotheses, references)
            )
        return scoring.scores(hypotheses, references, tokenize)

    @property
    def chunk(self) -> int:
        """How many sentences to translate at once."""
        return int(self._config.eval.batch_size) * _SORTED


def make_search(config: ConfigDict, module: Seq2Seq) -> many.Search:
    """Beam search with the options of ``config.eval``."""
    score, rows = config.eval, config.eval.batch_size
    longest = config.data.max_length
    shapes = many.Shapes()
    shapes = many.Shapes(
        # Few left of a large batch go on in one of a quarter.
        rows=(rows // 4, rows) if rows >= 16 else (rows,),
        sources=(*(n for n in shapes.sources if n < longest), longest),
        rooms=(*(n for n in shapes.rooms if n < longest), longest),
    )
    options = Options(
        bos=EOS,
        eos=EOS,
        pad=PAD,
        beam=score.beam,
        n_best=score.n_best,
        length_penalty=score.length_penalty,
        forbid=(UNK,),
    )

    def encode(module: Seq2Seq, src: jax.Array, where: jax.Array, length: int) -> Cache:
        return module.init_cache(module.encode(src, where), where, length)

    def start(params: Params, *args: Any) -> Any:
        return module.apply({"params": params}, *args, method=encode)

    def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
        return module.apply({"params": params}, ids, cache, method="decode_step")

    return many.make_search(start, step, options, shapes)


def make_predictor(translator: Translator, split: Callable[[str], Pairs]) -> Predictor:
    """Translations of lines, in their order."""

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        lines = iter(inputs)
        while chunk := list(itertools.islice(lines, translator.chunk)):
            bad = next((x for x in chunk if not isinstance(x, str)), "")
            if bad != "":
                raise InputError(f"--input: expected texts, found {bad!r}")
            texts = [translator.read(text) for text in chunk]
            for text, answer in zip(
                chunk, translator.translate(params, texts), strict=True
            ):
                shown = [translator.shown(text) for text in answer.texts]
                found: dict[str, Any] = {
                    "source": text,
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
        read=read_lines,
        rows=lambda name: split(name).source,
        run=run,
        text=lambda answer: str(answer["text"]),
    )


def read_lines(path: str) -> Iterator[str]:
    """Lines of a text file, gzipped or not, or of standard input for "-".

    Raises:
      InputError: no such file, or a line that is not UTF-8.
    """
    if path != "-":
        if not Path(path).is_file():
            raise InputError(f"--input: no file {path!r}")
        yield from (line.strip() for line in parallel.lines(Path(path)))
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield parallel.decode(line, "--input", number).strip()
