"""Marian: logits, searches and subwords of transformers, files in and out, training."""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_nmt
from helpers.trees import nested

from rdrop_jax.decoding.batched_search import Shapes, make_search
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size
from rdrop_jax.pretrained.initialize import merge
from rdrop_jax.tasks.seq2seq.task import init_params
from rdrop_jax.tasks.translation import marian, sentencepieces

STORED = Path(__file__).parents[1] / "parity" / "marian"
IDS = json.loads((STORED / "vocab.json").read_text())
PAD, UNK = IDS["<pad>"], IDS["<unk>"]
SEARCH = json.loads((STORED / "search.json").read_text())
MODULE = Seq2Seq(
    len(IDS),
    Size(2, 3, 20, 2, 28),
    activation="silu",
    positions="marian",
    max_length=24,
    logits_bias=True,
)
needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None,
    reason="sentencepiece is not installed",
)


@functools.cache
def arrays():
    with np.load(STORED / "arrays.npz") as stored:
        return dict(stored)


@functools.cache
def params():
    return nested(marian.read(STORED).arrays)


def wanted_tokens():
    return [
        ids[1 : 1 + ids[1:].tolist().index(0)].tolist() for ids in arrays()["generated"]
    ]


def test_logits_are_those_of_transformers():
    a = arrays()
    given = (jnp.asarray(a[k]) for k in ("src", "where", "inputs"))
    apply = jax.jit(functools.partial(MODULE.apply, train=False))
    np.testing.assert_allclose(
        apply({"params": params()}, *given), a["logits"], atol=1e-4
    )
    assert np.abs(a["logits"]).max() > 1


def test_translations_are_those_of_transformers():
    def start(p, src, where, length):
        memory = MODULE.apply({"params": p}, src, where, method="encode")
        given = {"params": p}, memory, where, length
        return MODULE.apply(*given, method="init_cache")

    def step(p, ids, cache):
        return MODULE.apply({"params": p}, ids, cache, method="decode_step")

    options = SearchOptions(
        bos=PAD, eos=0, pad=PAD, beam=SEARCH["num_beams"], free_end=True, forbid=(UNK,)
    )
    search = make_search(start, step, options, Shapes((64,), (18,), (16,)))
    src, where = arrays()["src"], arrays()["where"]
    sources = [ids[at].tolist() for ids, at in zip(src, where, strict=True)]
    # The lengths of transformers count the start token and the end.
    found = search(params(), sources, [SEARCH["max_length"] - 2] * 64, [0] * 64)
    assert [each.tokens[0] for each in found] == wanted_tokens()
    assert len({tuple(ids) for ids in wanted_tokens()}) > 1


@needs_sentencepiece
def test_ids_and_texts_are_those_of_transformers():
    found = sentencepieces.read(STORED)
    stored = json.loads((STORED / "lines.json").read_text())
    assert len(stored["lines"]) == 200
    encoded = found.source.encode(stored["lines"])
    assert [[*ids, 0] for ids in encoded] == stored["ids"]
    assert [found.target.decode(ids) for ids in wanted_tokens()] == stored["decoded"]
    assert found.source.encode(["</s>"])[0].count(0) == 0
    assert found.source.special.start == len(found.source) - 1 == PAD


@needs_sentencepiece
def test_weights_come_back_bit_for_bit(tmp_path):
    family = marian.family(MODULE, sentencepieces.read(STORED), {"num_beams": 4})
    family.save(params(), tmp_path, "safetensors")
    template = init_params(MODULE, jax.random.key(1))
    loaded, notes = merge(template, family.read(tmp_path), facts=family.facts)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, loaded, params())
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / name).read_bytes() == (STORED / name).read_bytes()
    assert json.loads((tmp_path / "vocab.json").read_text()) == IDS
    merge(template, family.read(STORED), facts=family.facts)


@needs_sentencepiece
def test_missing_and_corrupt_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected vocab.json, source.spm, .*, found"):
        sentencepieces.read(tmp_path)
    for name in ("source.spm", "target.spm", "vocab.json"):
        shutil.copy(STORED / name, tmp_path)
    (tmp_path / "target.spm").write_bytes(b"\xff" * 9)
    with pytest.raises(InputError, match=r"target.spm: not a SentencePiece model"):
        sentencepieces.read(tmp_path)
    shutil.copy(STORED / "target.spm", tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(InputError, match=r"expected <pad>, </s>, <unk>, as Marian's"):
        sentencepieces.read(tmp_path)


@needs_sentencepiece
@pytest.mark.slow
def test_a_run_from_marian_resumes_predicts_and_exports(tmp_path):
    """The run keeps the vocabulary: the weights may be gone."""
    from rdrop_jax import flags
    from rdrop_jax import train as train_program
    from rdrop_jax.export import export
    from rdrop_jax.predict import load

    weights, run = tmp_path / "weights", tmp_path / "run"
    shutil.copytree(STORED, weights)
    data = tiny_nmt.write(tmp_path)
    fields = {k: v for k, v in tiny_nmt.TINY.items() if not k.startswith("model.")}
    fields |= {"data.dir": str(data), "init_from": str(weights), "data.max_length": 40}
    fields |= {"data.source": "en", "data.target": "de"}

    def train(steps):
        given = {k: str(v) for k, v in (fields | {"total_steps": steps}).items()}
        config = flags.load(f"{tiny_nmt.NMT}:files", given)
        train_program.train(config, run, given=given)

    train(2)
    shutil.rmtree(weights)
    train(2)
    stored = json.loads((run / "config.json").read_text())["model"]
    assert (stored["name"], stored["activation"], stored["width"]) == (
        "marian",
        "silu",
        20,
    )
    assert len(load(run)(["eins zwei"])) == 1
    export(run, tmp_path / "exported", "last")
    assert (tmp_path / "exported" / "source.spm").is_file()


@needs_sentencepiece
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers and torch are not installed: make parity",
)
def test_transformers_loads_an_export_and_agrees(tmp_path):
    import torch
    from transformers import MarianMTModel, MarianTokenizer

    made = init_params(MODULE, jax.random.key(0))
    made["logits_bias"] = jnp.linspace(-1, 1, MODULE.vocab_size)
    marian.family(MODULE, sentencepieces.read(STORED), SEARCH).save(
        made, tmp_path, "safetensors"
    )
    theirs = MarianMTModel.from_pretrained(tmp_path).eval()
    a = arrays()
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.tensor(a["src"]).long(),
            attention_mask=torch.tensor(a["where"]).int(),
            decoder_input_ids=torch.tensor(a["inputs"]).long(),
        ).logits
    given = (jnp.asarray(a[k]) for k in ("src", "where", "inputs"))
    logits = MODULE.apply({"params": made}, *given, train=False)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert theirs.generation_config.max_length == SEARCH["max_length"]
    ids = MarianTokenizer.from_pretrained(tmp_path)("a red heart")["input_ids"]
    assert ids == [*sentencepieces.read(STORED).source.encode(["a red heart"])[0], 0]
