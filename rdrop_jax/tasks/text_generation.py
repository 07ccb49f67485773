"""What a language model answers: how a text goes on, or how probable it is."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Batch, Params
from rdrop_jax.data.batches import Row, Rows, eval_batches
from rdrop_jax.data.blocks import Windows
from rdrop_jax.data.lines import clean
from rdrop_jax.data.vocabularies import Vocabulary
from rdrop_jax.decoding.cache import Cache
from rdrop_jax.decoding.sample import sample
from rdrop_jax.errors import InputError
from rdrop_jax.models.adaptive import AdaptiveDecoder
from rdrop_jax.models.decoder import Decoder
from rdrop_jax.models.outputs import log_probs
from rdrop_jax.runtime.mesh import put
from rdrop_jax.tasks.base import Predictor
from rdrop_jax.tasks.translator import read_lines

MODES = ("generate", "score")
_SHORTEST = 32  # positions that are compiled for
# ``(params, batch) -> minus the log-probability of what counts in each row``
Sums = Callable[[Params, Batch], jax.Array]


class TextGenerator:
    """Continues prompts at random, a function of ``eval.sample_seed`` and the prompt.

    Args:
      config: of the run; ``eval`` says how.
      module: the model.
      vocabulary: of its ids.
    """

    def __init__(
        self,
        config: ConfigDict,
        module: Decoder | AdaptiveDecoder,
        vocabulary: Vocabulary,
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self._longest = module.max_length
        unknown = vocabulary.unknown
        score = config.eval

        def apply(params: Params, *args: Any, method: str) -> Any:
            return module.apply({"params": params}, *args, method=method)

        def step(params: Params, ids: jax.Array, cache: Cache) -> Any:
            output, cache = apply(params, ids, cache, method="decode_step")
            return log_probs(output), cache

        def run(params: Params, tokens: Any, lengths: Any, numbers: Any) -> jax.Array:
            rows, time = tokens.shape
            key = jax.random.key(score.sample_seed)
            return sample(
                functools.partial(step, params),
                apply(params, rows, time, method="init_cache"),
                tokens,
                lengths,
                jax.vmap(jax.random.fold_in, (None, 0))(key, numbers),
                temperature=score.temperature,
                top_p=score.top_p,
                forbid=() if unknown is None else (unknown,),
            )

        self._run = jax.jit(run)

    def room(self) -> int:
        """Tokens of the longest prompt whose continuation still fits."""
        return int(self._longest - self.config.eval.new_tokens)

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], first: int = 0
    ) -> list[list[int]]:
        """New ids for each prompt, of which the last `room` tokens are read.

        Args:
          params: of the model.
          prompts: ids of each, without the end of a line that stands before all.
          first: number of the first prompt; equal prompts of other numbers differ.

        Returns:
          ``eval.new_tokens`` ids for each.
        """
        new, room = self.config.eval.new_tokens, self.room()
        found: list[list[int]] = []
        size = self.config.eval.batch_size
        for start in range(0, len(prompts), size):
            chunk = [
                [self.vocabulary.end, *p][-room:] for p in prompts[start : start + size]
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
            done = np.asarray(self._run(params, tokens, lengths, numbers))
            for row, prompt in enumerate(chunk):
                found.append(done[row, len(prompt) :][:new].tolist())
        return found


def nll_of_windows(
    sums: Sums, mesh: Mesh, params: Params, windows: Rows, batch_size: int
) -> Float[np.ndarray, " rows"]:
    """Minus the log-probability of what counts in each window, in nats.

    Args:
      sums: of a batch of windows.
      mesh: where they are computed.
      params: of the model.
      windows: as `rdrop_jax.data.blocks.Windows`.
      batch_size: windows at a time.

    Returns:
      float64.
    """

    def renamed(row: Row) -> Row:  # a padded batch has a ``where`` of its own
        return {"inputs": row["inputs"], "labels": row["labels"], "new": row["where"]}

    found = []
    for batch in eval_batches(windows, renamed, batch_size=batch_size):
        batch["where"] = batch["where"][:, None] & batch.pop("new")
        rows = sums(params, put(mesh, batch, whole=True))
        found.append(np.asarray(jax.device_get(rows), np.float64))
    return np.concatenate(found)[: len(windows)]


class _Many:
    """Windows of several texts in one row of windows."""

    def __init__(self, texts: Sequence[Windows]) -> None:
        self._places = [(t, i) for t in texts for i in range(len(t))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Row:
        text, i = self._places[row]
        return text[i]


def make_predictor(
    generator: TextGenerator, sums: Sums, mesh: Mesh, rows: Callable[[str], list[str]]
) -> Predictor:
    """Continuations or scores of lines, as ``eval.predict`` says.

    Args:
      generator: of continuations.
      sums: of a batch of windows.
      mesh: where scores are computed.
      rows: lines of a split.

    Returns:
      The predictor.
    """
    config, vocabulary = generator.config, generator.vocabulary
    answer = {
        "generate": functools.partial(_continue, generator),
        "score": functools.partial(_score, config, vocabulary, sums, mesh),
    }[config.eval.predict]

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
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
            yield from answer(params, chunk, ids, number)
            number += len(chunk)

    read = functools.partial(read_lines, with_tables=False)
    return Predictor(read=read, rows=rows, run=run)


def _continue(
    generator: TextGenerator,
    params: Params,
    lines: list[str],
    ids: list[list[int]],
    number: int,
) -> Iterator[dict[str, Any]]:
    room = generator.room()
    found = generator.generate(params, ids, number)
    for line, prompt, new in zip(lines, ids, found, strict=True):
        answer: dict[str, Any] = {
            "prompt": line,
            "text": generator.vocabulary.decode(new),
        }
        if len(prompt) > room:
            answer["notes"] = [f"only the last {room} of {len(prompt)} tokens are read"]
        yield answer


def _score(
    config: ConfigDict,
    vocabulary: Vocabulary,
    sums: Sums,
    mesh: Mesh,
    params: Params,
    lines: list[str],
    ids: list[list[int]],
    number: int,
) -> Iterator[dict[str, Any]]:
    del number
    score, end = config.eval, vocabulary.end
    texts = [np.asarray([*line, end], np.int32) for line in ids]
    windows = [Windows(t, score.block_size, score.context, end) for t in texts]
    each = nll_of_windows(sums, mesh, params, _Many(windows), score.batch_size)
    ends = np.cumsum([len(w) for w in windows])
    for line, text, part in zip(lines, texts, np.split(each, ends[:-1]), strict=True):
        nll = float(part.sum())
        answer = {
            "text": line,
            "log_prob": round(-nll, 4),
            "perplexity": round(math.exp(min(nll / (len(line.split()) + 1), 700.0)), 4),
            "bits_per_character": round(nll / math.log(2) / (len(line) + 1), 4),
            "tokens": len(text),
        }
        unknown = int(np.sum(text == vocabulary.unknown))
        if unknown:
            answer["notes"] = [f"{unknown} tokens are not in the vocabulary"]
        yield answer
