"""Beam search over many sources: with a cache, without one, and by CTranslate2.

python -m benchmarks.decode [--layers 6 --width 512 --sources 1000]
python -m benchmarks.decode --workdir runs/mine --input sentences.txt

Without the workdir of a trained translator, weights are random. Target positions then
increase the logit of EOS, so that hypotheses end at different lengths, and sources have
the lengths of short sentences. All arms share weights, beam, batches and sorting.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import interleaved, ratio, table
from rdrop_jax.cli import process
from rdrop_jax.cli.run import open_run
from rdrop_jax.data import tokenizers
from rdrop_jax.decoding.batched_search import BestHypotheses, Shapes, make_search
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.files import lines
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size
from rdrop_jax.tasks.translation import task

PAD, BOS, EOS, UNKNOWN = range(4)
LIMIT = 63


def random_model(size: Size, vocab: int, length: int) -> tuple[Seq2Seq, Any]:
    """Make a random model whose hypotheses end some steps after ``length``."""
    model = Seq2Seq(
        vocab,
        size,
        share="none",
        positions="learned",
        max_length=256,
        logits_bias=True,
    )
    ids = jnp.ones((1, 2), int)
    start = jax.jit(
        lambda: model.init(jax.random.key(0), ids, ids > 0, ids, train=False)
    )
    params = jax.tree.map(np.array, start()["params"])
    rng = np.random.default_rng(1)
    towards = rng.normal(size=size.width) / size.width**0.5
    lean = np.clip(np.arange(model.max_length) - length, -40, 40)
    places = params["target_embed"]["positions"]
    places["table"] = 10 * places["table"] + np.outer(lean, towards).astype(np.float32)
    params["output"] *= 2
    params["logits_bias"][[PAD, BOS, UNKNOWN]] = -30

    # The EOS kernel points along the difference of late and early positions.
    inputs = jnp.asarray(rng.integers(4, vocab, (16, 2 * length)))
    hidden = jax.jit(
        lambda: model.apply(
            {"params": params},
            inputs,
            inputs > 0,
            inputs,
            train=False,
            return_hidden=True,
        )
    )()
    early, late = (
        np.mean(x, axis=(0, 1)) for x in np.split(np.asarray(hidden), [length], axis=1)
    )
    along = 16 * (late - early) / np.sum((late - early) ** 2)
    best = np.max(np.asarray(hidden) @ params["output"], axis=-1).mean()
    params["output"][:, EOS] = along
    params["logits_bias"][EOS] = best - along @ (early + late) / 2
    return model, params


def random_sources(count: int, vocab: int) -> list[list[int]]:
    """Draw sources as long as image captions, about 14 tokens including EOS."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(rng.lognormal(2.5, 0.35, count)), 4, 46).astype(int)
    return [[*rng.integers(4, vocab, n).tolist(), EOS] for n in lengths]


def trained(workdir: Path, path: Path) -> tuple[Seq2Seq, Any, list[list[int]]]:
    """Load model and parameters of a run with one shared table, and sources."""
    run = open_run(workdir)
    vocabularies = tokenizers.load(workdir)
    sizes = (len(vocabularies.source), len(vocabularies.target))
    model = task.make_model(run.config, *sizes)
    texts = list(lines.read(path))
    encoded = vocabularies.source.encode(texts)
    longest = model.max_length - 1
    return model, run.params, [[*ids[:longest], tokenizers.EOS] for ids in encoded]


def cached(model: Seq2Seq) -> tuple[Callable, Callable]:
    """Return start and step of a search with a cache."""

    def start(params: Any, src: Any, where: Any, length: int) -> Cache:
        bound = model.bind({"params": params})
        return bound.init_cache(bound.encode(src, where), where, length)

    def step(params: Any, ids: Any, cache: Cache) -> tuple[Any, Cache]:
        return model.apply({"params": params}, ids, cache, method="decode_step")

    return start, step


def uncached(model: Seq2Seq) -> tuple[Callable, Callable]:
    """Return them for a decoder that reads the full prefix in every step."""

    def start(params: Any, src: Any, where: Any, length: int) -> Cache:
        memory = model.apply({"params": params}, src, where, method="encode")
        prefix = jnp.zeros((len(src), 1, length, 1), jnp.int32)
        return Cache(prefix, (memory, where), jnp.int32(0))

    def step(params: Any, ids: Any, cache: Cache) -> tuple[Any, Cache]:
        bound, (memory, where) = model.bind({"params": params}), cache.shared
        prefix = jax.lax.dynamic_update_slice_in_dim(
            cache.beams, ids[..., None, None], cache.filled, axis=2
        )
        batch, beam, length = prefix.shape[:3]
        hidden = bound.decode_hidden(
            jnp.repeat(memory, beam, axis=0),
            jnp.repeat(where, beam, axis=0),
            prefix.reshape(batch * beam, length),
        )
        logits = bound.logits(hidden[:, cache.filled]).reshape(batch, beam, -1)
        return logits, cache._replace(beams=prefix, filled=cache.filled + 1)

    return start, step


def ctranslate2_search(
    model: Seq2Seq,
    params: Any,
    sources: list[list[int]],
    options: SearchOptions,
    batch: int,
) -> Callable[[], list[BestHypotheses]] | None:
    """Make the search of CTranslate2, float32, same weights; None if not installed."""
    if importlib.util.find_spec("ctranslate2") is None:
        print("CTranslate2 is not installed (pip install 'rdrop-jax[bench]'): left out")
        return None
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks import ctranslate2_seq2seq as converted

    with tempfile.TemporaryDirectory() as folder:
        converted.save(model, params, options, Path(folder))
        translator = converted.load(Path(folder), os.cpu_count() or 1)
    names = converted.tokens_of(model.vocab_size, options)
    ids = {name: i for i, name in enumerate(names)}
    tokens = [[names[i] for i in source] for source in sources]
    order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), i))

    def search() -> list[BestHypotheses]:
        found: list[Any] = [None] * len(sources)
        for begin in range(0, len(order), batch):
            rows = order[begin : begin + batch]
            results = translator.translate_batch(
                [tokens[i] for i in rows],
                beam_size=options.beam,
                length_penalty=options.length_penalty,
                return_scores=True,
                disable_unk=True,
                max_decoding_length=LIMIT + 1,
                min_decoding_length=0,
                suppress_sequences=[[name] for name in ("<pad>", "<s>") if name in ids],
            )
            for i, result in zip(rows, results, strict=True):
                chosen = [[ids[t] for t in best] for best in result.hypotheses]
                found[i] = BestHypotheses(chosen, result.scores)
        return found

    return search


def with_cpu(arms: dict[str, Callable], cpu: dict[str, list[float]]) -> dict:
    """Return arms that also record the CPU seconds of all cores."""

    def noted(name: str, arm: Callable) -> Callable[[], None]:
        def call() -> None:
            begin = time.process_time()
            arm()
            cpu.setdefault(name, []).append(time.process_time() - begin)

        return call

    return {name: noted(name, arm) for name, arm in arms.items()}


def agreement(found: list[BestHypotheses], wanted: list[BestHypotheses]) -> str:
    """Describe the share of equal hypotheses and the largest score difference."""
    same = [a.tokens[0] == b.tokens[0] for a, b in zip(found, wanted, strict=True)]
    apart = max(
        abs(a.scores[0] - b.scores[0]) for a, b in zip(found, wanted, strict=True)
    )
    return f"{np.mean(same):.1%} equal, scores differ by at most {apart:.1e}"


def main() -> None:
    """Print agreement, times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="workdir of a trained translator")
    parser.add_argument(
        "--input", type=Path, help="file with one source sentence per line"
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--mlp_width", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--sources", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument(
        "--uncached",
        type=int,
        default=32,
        help="number of sources to search without a cache",
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if (args.workdir is None) != (args.input is None):
        parser.error("--workdir and --input go together")
    if args.workdir:
        model, params, sources = trained(args.workdir, args.input)
        end, unknown = tokenizers.EOS, tokenizers.UNK
        options = SearchOptions(end, end, tokenizers.PAD, args.beam, forbid=(unknown,))
    else:
        size = Size(args.layers, args.layers, args.width, 4, args.mlp_width)
        model, params = random_model(size, args.vocab, args.length)
        options = SearchOptions(BOS, EOS, PAD, args.beam, forbid=(UNKNOWN,))
        sources = random_sources(args.sources, args.vocab)
    few = sources[: args.uncached]
    rows = (*(n for n in (8, 16, 24) if n < args.batch), args.batch)
    shapes = Shapes(rows=rows)
    device = jax.device_put(params)
    with_cache = make_search(*cached(model), options, shapes)
    without = make_search(*uncached(model), options, shapes)

    def ours(some: list[list[int]]) -> list[BestHypotheses]:
        return with_cache(device, some, [LIMIT] * len(some))

    arms: dict[str, Callable] = {
        "with a cache": lambda: ours(sources),
        f"with a cache, {len(few)}": lambda: ours(few),
        f"without, {len(few)}": lambda: without(device, few, [LIMIT] * len(few)),
    }
    other = ctranslate2_search(model, params, sources, options, args.batch)
    arms |= {"CTranslate2": other} if other else {}
    print(f"beam {args.beam}, {model.size}, {len(sources)} sources", flush=True)
    found = arms["with a cache"]()
    lengths = [len(x.tokens[0]) for x in found]
    print(f"length {np.mean(lengths):.1f}, deviation {np.std(lengths):.1f}")
    few_arms = list(arms)[1:3]
    print(f"uncached: {agreement(arms[few_arms[1]](), found[: len(few)])}")
    if other:
        print(f"CTranslate2: {agreement(other(), found)}", flush=True)
    cpu: dict[str, list[float]] = {}
    seconds = interleaved(with_cpu(arms, cpu), args.rounds)
    print(table(seconds, "with a cache"))
    print(f"uncached over cached: {ratio(*(seconds[n] for n in reversed(few_arms)))}")
    print("CPU seconds, minimum: " + str({n: round(min(x), 2) for n, x in cpu.items()}))


if __name__ == "__main__":
    process.tune_allocator()
    main()
