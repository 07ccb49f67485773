"""Text encoders: equal to transformers, dropout sites, names of weights."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.texts import GLUE
from helpers.trees import nested
from safetensors.numpy import load_file

from rdrop_jax import dropout, flags, tasks
from rdrop_jax.models import layers
from rdrop_jax.models.encoder import (
    NORM_EPS,
    NUM_TYPES,
    PAD_ID,
    SIZES,
    Classifier,
    Encoder,
)
from rdrop_jax.models.modernbert import ModernEncoder
from rdrop_jax.models.sizes import Size
from rdrop_jax.pretrained import families
from rdrop_jax.pretrained.text_names import to_ours, to_theirs
from rdrop_jax.tasks.text_classification.bert import make_model
from rdrop_jax.training import optim

STORED = Path(__file__).parents[1] / "parity" / "encoder"
KINDS = ("bert", "roberta", "xlm-roberta", "mpnet", "deberta-v2", "modernbert")
CONV = "deberta-v2-conv"  # DeBERTa-v2, with a convolution
HEADS = ("SequenceClassification", "TokenClassification")


def stored_config(kind):
    return json.loads((STORED / f"{kind}-{HEADS[0]}" / "config.json").read_text())


def classifier(kind, per_token=False, **options):
    given = {
        "init_from": str(STORED / f"{kind}-{HEADS[0]}"),
        "data.max_length": "12",
    }
    config = flags.load(f"{GLUE}:files", given)
    config = families.check_weights(config, tasks.families(), given=given)
    config = config.copy_and_resolve_references().unlock()
    config.model.update(options)
    config.data.classes = ("a", "b", "c")
    config.data.labels = "words" if per_token else "classes"
    return make_model(config)


def inputs(kind="bert"):
    with np.load(STORED / f"{kind}.npz") as stored:
        tokens, types = (jnp.asarray(stored[k], jnp.int32) for k in ("tokens", "types"))
        return tokens, types, jnp.asarray(stored["where"])


def stored_params(kind, head):
    arrays = load_file(STORED / f"{kind}-{head}" / "model.safetensors")
    found, unused = to_ours(
        arrays, kind.removesuffix("-conv"), per_token=head == HEADS[1]
    )
    assert unused == []
    return nested(found)


@pytest.mark.parametrize("kind", [*KINDS, CONV])
@pytest.mark.parametrize("head", HEADS)
def test_equal_to_transformers(kind, head):
    module = classifier(kind, head == HEADS[1])
    params = stored_params(kind, head)
    tokens, types, where = inputs(kind)
    logits, state = module.apply(
        {"params": params},
        tokens,
        types,
        where,
        train=False,
        capture_intermediates=True,
    )
    kept = np.asarray(where)
    found = state["intermediates"]["encoder"]
    with np.load(STORED / f"{kind}.npz") as wanted:
        layers = range(module.encoder.size.layers)
        states = [found["embedding_norm"], *(found[f"block_{i}"] for i in layers)]
        if kind == "modernbert":
            states[-1] = found["final_norm"]
        if kind == CONV:
            states[1] = found["conv_norm"]
        for i, hidden in enumerate(states):
            np.testing.assert_allclose(
                hidden["__call__"][0][kept],
                wanted[f"{head}/hidden_{i}"][kept],
                atol=1e-4,
            )
        theirs = wanted[f"{head}/logits"]
        if head == HEADS[1]:
            logits, theirs = logits[kept], theirs[kept]
        np.testing.assert_allclose(logits, theirs, atol=1e-4)
        assert np.abs(theirs).max() > 0.5


def apply(module, params, key=None, batch=None):
    rngs = None if key is None else {"dropout": key}
    return module.apply(
        {"params": params},
        *(batch or inputs(module.encoder.kind)),  # the same inputs with CONV
        train=key is not None,
        rngs=rngs,
    )


@pytest.mark.parametrize("kind", [*KINDS, CONV])
def test_padding_changes_nothing(kind):
    module, params = classifier(kind), stored_params(kind, HEADS[0])
    tokens, types, where = inputs(kind)
    others = jnp.where(where, tokens, 17)
    longer = [jnp.pad(x, ((0, 0), (0, 4))) for x in (others, types, where)]
    np.testing.assert_allclose(
        apply(module, params), apply(module, params, batch=longer), atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["dropout", "attention_dropout"])
def test_each_rate_alone_makes_passes_differ(kind, site):
    module = classifier(
        kind, **{"dropout": 0.0, "attention_dropout": 0.0} | {site: 0.3}
    )
    params = stored_params(kind, HEADS[0])
    a, b = (apply(module, params, jax.random.key(i)) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "block", "head"),
    [
        ("bert", 3, 1),
        ("roberta", 3, 2),
        ("xlm-roberta", 3, 2),
        ("mpnet", 3, 2),
        ("deberta-v2", 4, 1),
        ("modernbert", 3, 1),
    ],
)
def test_dropout_sites_are_the_published_ones(monkeypatch, kind, block, head):
    """After the embedding; in each block; before each or the last layer of the head."""
    drawn = []

    def counted(key, x, rate, *, masks):
        drawn.append(x.shape)
        return dropout(key, x, rate, masks=masks)

    monkeypatch.setattr(layers, "dropout", counted)
    params = stored_params(kind, HEADS[0])
    module = classifier(kind)
    apply(module, params, jax.random.key(0))
    assert len(drawn) == 1 + block * module.encoder.size.layers + head
    # As published, embeddings of distances have one mask for all examples.
    shared = [shape for shape in drawn if shape[0] != 4]
    assert len(shared) == (block == 4) * module.encoder.size.layers


def test_kernels_start_as_those_of_bert():
    init = functools.partial(classifier("bert").init, train=False)
    params = jax.jit(init)(jax.random.key(0), *inputs())
    paths = jax.tree_util.tree_leaves_with_path(params)
    kernels = {
        jax.tree_util.keystr(path): np.std(x)
        for path, x in paths
        if path[-1].key == "kernel"
    }
    assert len(kernels) == 2 * 6 + 2
    assert kernels == pytest.approx(dict.fromkeys(kernels, 0.02), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2", "modernbert"])
def test_remat_and_half_precision_compute_the_same(kind):
    params, key = stored_params(kind, HEADS[0]), jax.random.key(0)

    def loss(params, **options):
        module = classifier(kind, **options)
        return jnp.sum(apply(module, params, key).astype(jnp.float32) ** 2)

    plain, remat = (
        jax.value_and_grad(lambda p, r=r: loss(p, remat=r))(params)
        for r in (False, True)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        plain,
        remat,
    )
    half = loss(params, dtype="bfloat16")
    np.testing.assert_allclose(half, plain[0], rtol=0.1)


# Of the published models, poolers without heads, as their cards and config files give
# them.
@pytest.mark.parametrize(
    ("kind", "size", "vocab", "millions"),
    [
        ("mpnet", "base", 30527, 109.5),
        ("deberta-v2", "base", 128100, 184.4),
        ("deberta-v2", "large", 128100, 435.1),
        ("bert", "base", 28996, 108.3),
        ("roberta", "base", 50265, 124.6),
        ("bert", "large", 28996, 333.6),
        ("roberta", "large", 50265, 355.4),
    ],
)
def test_sizes_are_the_published_ones(kind, size, vocab, millions):
    def make(size):
        ids = {"num_types": NUM_TYPES[kind], "pad_id": PAD_ID[kind]}
        return Classifier(Encoder(kind=kind, size=size, vocab_size=vocab, **ids), 2)

    head = 2 * SIZES[size].width + 2
    assert round((parameters(make, SIZES[size]) - head) / 1e6, 1) == millions


def parameters(make, size):
    """Number of parameters; all layers are as large as the second."""

    def count(layers):
        module = make(size._replace(layers=layers))
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        where = jax.ShapeDtypeStruct((1, 8), jnp.bool_)
        init = functools.partial(module.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), ids, ids, where)
        return sum(x.size for x in jax.tree.leaves(shapes))

    two = count(2)
    return two + (size.layers - 2) * (count(3) - two)


@pytest.mark.parametrize(
    ("size", "millions"), [((22, 768, 12, 1152), 149), ((28, 1024, 16, 2624), 395)]
)
def test_sizes_of_modernbert_are_the_published_ones(size, millions):
    make = functools.partial(ModernEncoder, vocab_size=50368)
    assert round(parameters(make, Size(*size)) / 1e6) == millions


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "modernbert"])
def test_layer_decay_counts_tables_of_positions_as_embeddings(kind):
    params = stored_params(kind, HEADS[0])["encoder"]
    blocks = sum(name.startswith("block_") for name in params)
    for name, scales in optim.layer_scales(params, 0.5).items():
        if not name.startswith("block_"):
            power = 0 if name == "final_norm" else blocks + 1
            assert {*jax.tree.leaves(scales)} == {0.5**power}, name


def test_too_long_an_input_is_refused():
    module = classifier("bert")
    blank = jnp.zeros((1, 17), jnp.int32)
    with pytest.raises(ValueError, match="at most 16 positions, found 17"):
        module.init(jax.random.key(0), blank, blank, blank == 0, train=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_names_there_and_back(kind, head):
    arrays = load_file(STORED / f"{kind}-{head}" / "model.safetensors")
    per_token = head == HEADS[1]
    ours, _ = to_ours(arrays, kind, per_token=per_token)
    back = to_theirs(ours, kind, per_token=per_token)
    assert back.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x)


def test_old_spellings_bare_names_and_pretraining_heads():
    arrays = load_file(STORED / f"bert-{HEADS[0]}" / "model.safetensors")
    wanted, _ = to_ours(arrays, "bert")
    old = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in arrays.items()
    }
    beside = {
        "cls.predictions.bias": np.zeros(50),
        "cls.predictions.decoder.weight": old["embeddings.word_embeddings.weight"],
        "embeddings.position_ids": np.arange(16)[None],
    }
    found, left_out = to_ours(old | beside, "bert")
    assert found.keys() == wanted.keys()
    assert sorted(left_out) == sorted(beside)
    found, _ = to_ours({"bert.strange": np.zeros(1)}, "bert")
    assert list(found) == ["bert.strange"]


def test_a_pooler_of_roberta_is_not_its_classifier():
    found, unused = to_ours({"roberta.pooler.dense.bias": np.zeros(4)}, "roberta")
    assert not found
    assert unused == ["roberta.pooler.dense.bias"]


def test_stored_configs_are_those_of_the_test():
    for kind in KINDS:
        config = stored_config(kind)
        modern = kind == "modernbert"
        assert config["norm_eps" if modern else "layer_norm_eps"] == NORM_EPS[kind]
        assert config["hidden_activation" if modern else "hidden_act"] == "gelu"
