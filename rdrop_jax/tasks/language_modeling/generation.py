"""Prediction of language models: continuations or log-probabilities of texts."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from rdrop_jax.core.metrics import perplexity
from rdrop_jax.core.passes import Batch, Params
from rdrop_jax.data.batches import Row, Rows, eval_batches
from rdrop_jax.decoding.sampling import sample
from rdrop_jax.errors import InputError, nan_outputs
from rdrop_jax.files.lines import clean
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.decoder import CausalDecoder
from rdrop_jax.models.outputs import log_probs
from rdrop_jax.tasks.language_modeling.token_files import Split
from rdrop_jax.tasks.language_modeling.vocabularies import (
    UNKNOWN,
    LineVocabulary,
    Tokens,
)
from rdrop_jax.tasks.language_modeling.windows import Windows
from rdrop_jax.tasks.seq2seq.translator import read_lines
from rdrop_jax.training.mesh import shard_batch
from rdrop_jax.training.state import root_key
from rdrop_jax.training.task import Predictor

MODES = ("generate", "score")
_SHORTEST = 32  # minimum number of positions to compile for
# ``(params, batch) -> negative log-likelihood`` of each token, or of each row.
TokenNll = Callable[[Params, Batch], jax.Array]


class TextGenerator:
    """Samples continuations of prompts, reproducibly for a given ``eval.sample_seed``.

    Args:
      config: config of the run; ``eval`` has the sampling options.
      module: the model.
      vocabulary: vocabulary of the model.

    Attributes:
      run: jitted ``(params, tokens, lengths, numbers) -> tokens``, the sampling of one
        batch; see `rdrop_jax.decoding.sampling.sample`.
    """

    def __init__(
        self,
        config: ConfigDict,
        module: CausalDecoder,
        vocabulary: LineVocabulary,
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self._longest = module.max_length
        never = (vocabulary.unknown, vocabulary.pad)
        score = config.eval

        def apply(params: Params, *args: Any, method: str) -> Any:
            return module.apply({"params": params}, *args, method=method)

        def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
            output, cache = apply(params, ids, cache, method="decode_step")
            return log_probs(output), cache

        def run(params: Params, tokens: Any, lengths: Any, numbers: Any) -> jax.Array:
            rows, time = tokens.shape
            key = root_key(score.sample_seed)
            return sample(
                functools.partial(step, params),
                apply(params, rows, time, method="init_cache"),
                tokens,
                lengths,
                jax.vmap(jax.random.fold_in, (None, 0))(key, numbers),
                temperature=score.temperature,
                top_p=score.top_p,
                forbid=tuple(i for i in never if i is not None),
            )

        self.run = jax.jit(run)

    def max_prompt(self) -> int:
        """Return the maximum number of prompt tokens, given ``eval.new_tokens``."""
        return int(self._longest - self.config.eval.new_tokens)

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], first: int = 0
    ) -> list[list[int]]:
        """Sample new ids for each prompt, conditioned on its last `max_prompt` tokens.

        Args:
          params: parameters of the model.
          prompts: token ids of each prompt, without the leading end-of-line token.
          first: index of the first prompt; the index is part of the random key.

        Returns:
          ``eval.new_tokens`` ids for each prompt.

        Raises:
          InputError: the outputs of the model are NaN.
        """
        new, limit = self.config.eval.new_tokens, self.max_prompt()
        found: list[list[int]] = []
        size = self.config.eval.batch_size
        for start in range(0, len(prompts), size):
            chunk = [
                [self.vocabulary.end, *p][-limit:]
                for p in prompts[start : start + size]
            ]
            longest = max(map(len, chunk)) + new
            time = min(max(_SHORTEST, 1 << (longest - 1).bit_length()), self._longest)
            rows = 1 << (len(chunk) - 1).bit_length()
            tokens = np.full((rows, time), self.vocabulary.end, np.int32)
            lengths = np.ones(rows, np.int32)
            for row, prompt in enumerate(chunk):
                tokens[row, : len(prompt)] = prompt
                lengths[row] = len(prompt)
            numbers = first + start + np.arange(rows)
            done = np.asarray(self.run(params, tokens, lengths, numbers))
            if (done < 0).any():
                raise nan_outputs()
            for row, prompt in enumerate(chunk):
                found.append(done[row, len(prompt) :][:new].tolist())
        return found


def make_windows(
    config: ConfigDict, ids: Int[np.ndarray, " tokens"], before: int
) -> Windows:
    """Make the windows in which a text is scored."""
    return Windows(ids, config.eval.block_size, before, config.eval.context)


def nll_of_windows(
    nll: TokenNll, mesh: Mesh, params: Params, windows: Rows, batch_size: int
) -> Float[np.ndarray, "rows *tokens"]:
    """Compute the negative log-likelihood of the scored tokens of windows, in nats.

    Args:
      nll: computes it for a batch, per window or per token.
      mesh: device mesh.
      params: parameters of the model.
      windows: windows of text, such as `windows.Windows`.
      batch_size: number of windows per batch.

    Returns:
      A float64 array.
    """

    def renamed(row: Row) -> Row:  # padding adds a separate ``where``
        return {"inputs": row["inputs"], "labels": row["labels"], "new": row["where"]}

    found = []
    for batch in eval_batches(windows, renamed, batch_size=batch_size):
        batch["where"] = batch["where"][:, None] & batch.pop("new")
        rows = nll(params, shard_batch(mesh, batch, full=True))
        found.append(np.asarray(jax.device_get(rows), np.float64))
    return np.concatenate(found)[: len(windows)]


class SplitLines(list[str]):
    """Lines of a split, with the token ids of its text.

    Args:
      lines: lines of the text.
      ids: token ids of the text, including end-of-line tokens.
      stored: True if the lines are the original text, False if decoded from its ids.
    """

    def __init__(
        self, lines: Iterable[str], ids: Int[np.ndarray, " tokens"], *, stored: bool
    ) -> None:
        super().__init__(lines)
        self.ids, self.stored = ids, stored


def split_lines(split: Split, vocabulary: LineVocabulary) -> SplitLines:
    """Return the lines of a split.

    Args:
      split: the split. If it was stored without its lines, they are decoded from its
        ids, with ``<unk>`` for unknown tokens.
      vocabulary: vocabulary of the ids.
    """
    if split.lines is not None:
        return SplitLines(split.lines, split.ids, stored=True)
    lines = vocabulary.decode(split.ids.tolist()).split("\n")[:-1]
    return SplitLines(lines, split.ids, stored=False)


def make_predictor(
    generator: TextGenerator,
    nll: TokenNll,
    mesh: Mesh,
    rows: Callable[[str], SplitLines],
) -> Predictor:
    """Make a predictor that continues or scores lines, depending on ``eval.predict``.

    Lines of a split are scored as in `evaluate`, with the preceding text as context.
    All other lines are scored without context.

    Args:
      generator: samples continuations.
      nll: negative log-likelihood per token of a batch of windows.
      mesh: device mesh.
      rows: ``name -> lines`` of a split.

    Returns:
      The predictor.
    """
    config, vocabulary = generator.config, generator.vocabulary

    def score(params: Params, windows: Rows) -> Float[np.ndarray, "rows tokens"]:
        found = nll_of_windows(nll, mesh, params, windows, config.eval.batch_size)
        if np.isnan(found).any():
            raise nan_outputs()
        return found

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        score_lines = config.eval.predict == "score"
        scored = functools.partial(score, params)
        if isinstance(inputs, SplitLines) and score_lines:
            yield from _score_split(config, vocabulary, scored, inputs)
            return
        lines, number = iter(inputs), 0
        while chunk := list(itertools.islice(lines, config.eval.batch_size)):
            for line in chunk:
                if not isinstance(line, str):
                    raise InputError(f"--input: expected texts, found {line!r}")
            chunk = [clean(line) for line in chunk]
            try:
                ids = vocabulary.encode(chunk)
            except InputError as error:
                raise InputError(f"--input: {error}") from error
            if score_lines:
                yield from _score_lines(config, vocabulary, scored, chunk, ids)
            else:
                yield from _continue(generator, params, chunk, ids, number)
            number += len(chunk)

    read = functools.partial(read_lines, with_tables=False, strip=False)
    return Predictor(read=read, rows=rows, run=run)


def _continue(
    generator: TextGenerator,
    params: Params,
    lines: list[str],
    ids: list[list[int]],
    number: int,
) -> Iterator[dict[str, Any]]:
    limit = generator.max_prompt()
    found = generator.generate(params, ids, number)
    for line, prompt, new in zip(lines, ids, found, strict=True):
        answer: dict[str, Any] = {
            "prompt": line,
            "text": generator.vocabulary.decode(new),
        }
        if len(prompt) > limit:
            answer["notes"] = [
                f"only the last {limit} of {len(prompt)} tokens are read"
            ]
        yield answer


def _score_lines(
    config: ConfigDict,
    vocabulary: LineVocabulary,
    score: Callable[[Rows], np.ndarray],
    lines: list[str],
    ids: list[list[int]],
) -> Iterator[dict[str, Any]]:
    end = vocabulary.end
    texts = [np.asarray([*line, end], np.int32) for line in ids]
    windows = [make_windows(config, text, end) for text in texts]
    each = score([text[i] for text in windows for i in range(len(text))])
    ends = np.cumsum([len(text) for text in windows])
    for line, text, part in zip(lines, texts, np.split(each, ends[:-1]), strict=True):
        yield _scored(vocabulary, line, text, float(part.sum()))


def _score_split(
    config: ConfigDict,
    vocabulary: LineVocabulary,
    score: Callable[[Rows], np.ndarray],
    lines: SplitLines,
) -> Iterator[dict[str, Any]]:
    """Score the lines of a text; their log-probabilities sum to that of the text."""
    ids, context = lines.ids, config.eval.context
    found = score(make_windows(config, ids, vocabulary.end))
    # Window w scores its last tokens, which start at w * (block_size - context).
    new = config.eval.block_size - context
    nll = np.zeros(len(ids))
    for row, part in enumerate(found):
        start = row * new
        first = min(start, context)
        count = min(new, len(ids) - start)
        nll[start : start + count] = part[first : first + count]
    ends = np.flatnonzero(np.asarray(ids) == vocabulary.end) + 1
    if len(ends) > len(lines):  # a line contains a word <eos>, which is no end of it
        ends = np.cumsum([len(line) + 1 for line in vocabulary.encode(list(lines))])
    for line, start, end in zip(lines, [0, *ends[:-1]], ends, strict=True):
        part = float(nll[start:end].sum())
        answer = _scored(vocabulary, line, ids[start:end], part)
        if "notes" in answer and not lines.stored:
            unknown = int(np.sum(ids[start:end] == vocabulary.unknown))
            answer["notes"] = [
                f"{unknown} tokens are {UNKNOWN}: the run has no characters of them"
            ]
        yield answer


def _scored(
    vocabulary: LineVocabulary, line: str, ids: Int[np.ndarray, " tokens"], nll: float
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "text": line,
        "log_prob": round(-nll, 4),
        "perplexity": round(perplexity(nll / (len(line.split()) + 1)), 4),
        "bits_per_character": round(
            nll / math.log(2) / (vocabulary.characters(line) + 1), 4
        ),
        "tokens": len(ids),
    }
    unknown = int(np.sum(np.asarray(ids) == vocabulary.unknown))
    # A word "<unk>" in the text is a regular token of a word vocabulary.
    has_words = isinstance(vocabulary, Tokens) and vocabulary.kind == "words"
    written = line.split().count(UNKNOWN) if has_words else 0
    notes = []
    if unknown > written:
        notes.append(f"{unknown - written} tokens are not in the vocabulary")
    if unknown and written:
        notes.append(f"{written} tokens are {UNKNOWN} in the text")
    if notes:
        answer["notes"] = notes
    return answer
