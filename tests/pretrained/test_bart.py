"""BART: logits and summaries of transformers, files in and out, constraints, memory."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.trees import nested

from rdrop_jax.data import subwords, tokenizer_files
from rdrop_jax.data.tokenizers import Vocabulary
from rdrop_jax.decoding.batched_search import Shapes, make_search
from rdrop_jax.decoding.constraints import forbid_repeats
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size
from rdrop_jax.pretrained.initialize import flatten, merge
from rdrop_jax.tasks.seq2seq.task import init_params
from rdrop_jax.tasks.summarization import weights as bart
from rdrop_jax.tasks.summarization.task import BART

STORED = Path(__file__).parents[1] / "parity" / "bart"
MODULE = Seq2Seq(40, Size(2, 2, 16, 2, 24), max_length=24, **BART)
SEARCH = json.loads((STORED / "search.json").read_text())
# Lengths of transformers count </s>, and what the decoder starts from.
LIMITS = {"min": SEARCH["min_length"] - 1, "max": SEARCH["max_length"] - 2}
OPTIONS = SearchOptions(
    bos=2,
    eos=2,
    pad=1,
    beam=4,
    length_penalty=2.0,
    first=0,
    free_end=True,
    no_repeat=3,
    forbid=(3,),
)


@functools.cache
def arrays():
    with np.load(STORED / "arrays.npz") as stored:
        return dict(stored)


@functools.cache
def params():
    return nested(bart.read(STORED).arrays)


@functools.cache
def vocabulary():
    """The 256 bytes and BART's special tokens."""
    return Vocabulary("joint", subwords.train_bytes(["none"], 261).to_str())


def family(module=MODULE):
    search = {k: v for k, v in SEARCH.items() if not k.startswith("forced")}
    return bart.family(module, vocabulary(), search)


def test_encoder_and_decoder_are_those_of_transformers():
    a = {k: jnp.asarray(v) for k, v in arrays().items()}

    @jax.jit
    def run(p):
        given = {"params": p}, a["src"], a["where"]
        return (
            MODULE.apply(*given, method="encode"),
            MODULE.apply(*given, a["inputs"], train=False),
        )

    memory, logits = run(params())
    kept = arrays()["where"]
    np.testing.assert_allclose(memory[kept], a["encoder"][kept], atol=1e-4)
    np.testing.assert_allclose(logits, a["logits"], atol=1e-4)
    assert np.abs(a["logits"]).max() > 3


@functools.cache
def make(options, shapes):
    def start(p, src, where, length):
        memory = MODULE.apply({"params": p}, src, where, method="encode")
        given = {"params": p}, memory, where, length
        return MODULE.apply(*given, method="init_cache")

    def step(p, ids, cache):
        return MODULE.apply({"params": p}, ids, cache, method="decode_step")

    return make_search(start, step, options, shapes)


def search(options, low, high, rows, shapes):
    src, where = arrays()["src"][:rows], arrays()["where"][:rows]
    sources = [ids[at].tolist() for ids, at in zip(src, where, strict=True)]
    found = make(options, shapes)(params(), sources, [high] * rows, [low] * rows)
    return [each.tokens[0] for each in found]


def test_summaries_are_those_of_transformers():
    """A cache that grows and batches that shrink change nothing; nor does order."""
    shapes = Shapes((16, 64), (24,), (8, 24))
    found = search(OPTIONS, LIMITS["min"], LIMITS["max"], 64, shapes)
    wanted = [
        ids[1 : 1 + ids[1:].tolist().index(2)].tolist() for ids in arrays()["generated"]
    ]
    assert found == wanted
    assert len({tuple(ids) for ids in wanted}) > 20
    lengths = {len(ids) for ids in wanted}
    assert len(lengths) > 3
    assert max(lengths) == LIMITS["max"]


def plain(logits_of, low, high, options):
    """Beam search as a list of lists, every rule written out."""
    live, ended = [(0.0, [])], []
    for step in range(high + 1):
        candidates = []
        rows = logits_of([tokens for _, tokens in live])
        for (score, tokens), z in zip(live, np.asarray(rows, np.float64), strict=True):
            row = z - np.log(np.exp(z - z.max()).sum()) - z.max()
            row[[options.pad, *options.forbid]] = -np.inf
            n = options.no_repeat
            for i in range(len(tokens) - n + 1 if n else 0):
                window = tokens[i : i + n]
                if window[:-1] == tokens[len(tokens) - n + 1 :]:
                    row[window[-1]] = -np.inf
            if step < low:
                row[options.eos] = -np.inf
            if step == 0:
                row = np.where(np.arange(len(row)) == options.first, 0.0, -np.inf)
            if step == high:
                row = np.where(np.arange(len(row)) == options.eos, 0.0, -np.inf)
            candidates += [
                (score + x, [*tokens, i]) for i, x in enumerate(row) if x > -np.inf
            ]
        best = sorted(candidates, key=lambda c: -c[0])[: 2 * options.beam]
        for score, tokens in best[: options.beam]:
            if tokens[-1] == options.eos:
                ended.append((score / (step + 1) ** options.length_penalty, tokens))
        ended = sorted(ended, key=lambda c: -c[0])[: options.beam]
        if len(ended) == options.beam:
            break
        live = [c for c in best if c[1][-1] != options.eos][: options.beam]
    return ended[0][1][:-1]


@pytest.mark.parametrize(
    ("low", "high", "changes"),
    [
        pytest.param(  # most sources are shorter than the minimum
            12, 14, {"no_repeat": 2}, marks=pytest.mark.slow
        ),
        (0, 6, {"no_repeat": 0, "length_penalty": 0.5}),
        pytest.param(20, 22, {"no_repeat": 1}, marks=pytest.mark.slow),
    ],
)
def test_constraints_are_those_of_a_plain_search(low, high, changes):
    options, rows = OPTIONS._replace(**changes), 3
    found = search(options, low, high, rows, Shapes((3,), (24,), (24,)))
    src, where = (jnp.asarray(arrays()[k][:rows]) for k in ("src", "where"))

    @jax.jit
    def logits(i, ids):
        one = (jnp.repeat(x[i][None], len(ids), axis=0) for x in (src, where))
        return MODULE.apply({"params": params()}, *one, ids, train=False)

    for row in range(rows):

        def of(live, row=row):
            ids, last = np.ones((options.beam, 24), np.int32), len(live[0])
            ids[: len(live), 0] = options.bos
            ids[: len(live), 1 : last + 1] = live
            return np.asarray(logits(row, jnp.asarray(ids)))[: len(live), last]

        assert found[row] == plain(of, low, high, options)
        assert low <= len(found[row]) <= high
        assert found[row][0] == options.first
        n = options.no_repeat
        grams = [tuple(found[row][i : i + n]) for i in range(len(found[row]) - n + 1)]
        assert not n or len(set(grams)) == len(grams)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeats_are_found_at_every_step(size):
    tokens = np.random.default_rng(size).integers(0, 3, (2, 3, 8))
    forbid = jax.jit(forbid_repeats, static_argnums=3)
    for step in range(9):
        logits = forbid(jnp.zeros((2, 3, 4)), jnp.asarray(tokens), step, size)
        for place in np.ndindex(2, 3):
            done = tokens[place][:step].tolist()
            grams = {tuple(done[i : i + size]) for i in range(step - size + 1)}
            last = tuple(done[step - size + 1 :]) if size > 1 else ()
            wanted = [step >= size and (*last, v) in grams for v in range(4)]
            assert np.isneginf(logits[place]).tolist() == wanted


def test_weights_come_back_bit_for_bit(tmp_path):
    module = MODULE.clone(vocab_size=len(vocabulary()))
    made = init_params(module, jax.random.key(0))
    family(module).save(made, tmp_path, "safetensors")
    loaded, notes = merge(
        init_params(module, jax.random.key(1)),
        family(module).read(tmp_path),
        facts=family(module).facts,
    )
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, loaded, made)
    again = Vocabulary("joint", tokenizer_files.load(tmp_path).to_str())
    assert again.encode(["Fünf </s>"]) == vocabulary().encode(["Fünf </s>"])


def test_other_models_are_refused_and_rounded_tables_are_taken():
    template = init_params(MODULE, jax.random.key(0))
    weights = bart.read(STORED)
    wide = MODULE.clone(size=Size(2, 2, 16, 4, 24))
    with pytest.raises(
        InputError, match="encoder_attention_heads: expected 4, found 2"
    ):
        merge(template, weights, facts=family(wide).facts)
    more = MODULE.clone(vocab_size=41)
    template = init_params(more, jax.random.key(0))
    loaded, notes = merge(template, weights, resize=family().resize)
    assert notes[0].startswith("embedding: resized from (40, 16) to (41, 16)")
    found = flatten(loaded)["embedding"]
    np.testing.assert_array_equal(found[:40], flatten(params())["embedding"])
    with pytest.raises(InputError, match="expected BART: no parameter of an enc"):
        bart.read(STORED.parent / "encoder" / "bert-SequenceClassification")


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers and torch are not installed: make parity",
)
def test_transformers_loads_an_export_and_agrees(tmp_path):
    import torch
    from transformers import AutoTokenizer, BartForConditionalGeneration

    module = MODULE.clone(vocab_size=len(vocabulary()))
    made = init_params(module, jax.random.key(0))
    made["logits_bias"] = jnp.linspace(-1, 1, module.vocab_size)
    family(module).save(made, tmp_path, "safetensors")
    theirs = BartForConditionalGeneration.from_pretrained(tmp_path).eval()
    a = arrays()
    given = {"input_ids": torch.tensor(a["src"]).long()}
    given["attention_mask"] = torch.tensor(a["where"]).int()
    inputs = torch.tensor(a["inputs"]).long()
    with torch.no_grad():
        wanted = theirs(**given, decoder_input_ids=inputs).logits
    src, where, ids = (jnp.asarray(a[k]) for k in ("src", "where", "inputs"))
    logits = module.apply({"params": made}, src, where, ids, train=False)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert theirs.generation_config.max_length == SEARCH["max_length"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "A house, 15 cats."
    assert tokenizer(text)["input_ids"] == [*vocabulary().encode([text])[0], 2]
