"""DINOv2: the logits of PyTorch, files of transformers, and messages."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TINY, VIT, train
from safetensors.numpy import load_file, save_file

from rdrop_jax import export, flags, tasks
from rdrop_jax import train as train_program
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import SIZES, ViT
from rdrop_jax.pretrained import families
from rdrop_jax.pretrained.initialize import flatten, merge
from rdrop_jax.tasks.image_classification import vit_model

PARITY = Path(__file__).parents[1] / "parity" / "dinov2"
MODEL = ViT(Size(2, 24, 3, 48), 5, patch_size=7, norm_eps=1e-2, kind="dinov2")
SAFE = "model.safetensors"


def family(size=35):
    images = vit_model.Preprocessing(size, 3, [0.5] * 3, [0.5] * 3)
    return vit_model.family(MODEL, images)


@functools.cache
def template(size):
    """Zeros in the shapes of the model's parameters."""
    blank = jnp.zeros((1, size, size, 3))
    shapes = jax.eval_shape(
        lambda: MODEL.init(jax.random.key(0), blank, train=False)["params"]
    )
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def load(path=PARITY, size=35):
    f = family(size)
    weights = f.read(path)
    empty = template(size)
    return merge(empty, weights, facts=f.facts, resize=f.resize, reinit=f.reinit)


@functools.cache
def apply(size):
    """The jitted model: ``apply(size)(params, images) -> logits``."""
    return jax.jit(lambda p, x: MODEL.apply({"params": p}, x, train=False))


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(PARITY, tmp_path / "model"))


def check_weights(path, **overrides):
    overrides = TINY | {"init_from": str(path)} | overrides
    overrides = {k: v for k, v in overrides.items() if not k.startswith("model.")}
    config = flags.load(VIT, overrides)
    return families.check_weights(config, tasks.families(), given=overrides).model


@pytest.mark.parametrize("size", [35, 21, 49])
def test_logits_equal_pytorch(size):
    """The second and third size through bicubic positions."""
    arrays = np.load(PARITY / "logits.npz")
    params, notes = load(size=size)
    images = jnp.asarray(arrays[f"images_{size}"])
    found = apply(size)(params, images)
    np.testing.assert_allclose(found, arrays[f"logits_{size}"], atol=1e-4)
    cells = (size // 7) ** 2 + 1
    resized = f"positions: resized from (1, 26, 24) to (1, {cells}, 24)"
    assert (resized in notes) == (size != 35)
    unused = "embeddings.mask_token: not loaded; this model has no such layer"
    assert unused in notes


def test_an_export_comes_back_bit_for_bit(tmp_path):
    params = load()[0]
    family().save(params, tmp_path, "safetensors")
    theirs, ours = load_file(PARITY / SAFE), load_file(tmp_path / SAFE)
    del theirs["dinov2.embeddings.mask_token"]
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, name)
    stored = json.loads((PARITY / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())
    assert "intermediate_size" not in written
    assert not written.pop("use_mask_token")
    same = written.keys() & stored.keys() - {"hidden_dropout_prob"}
    assert len(same) > 12
    assert {k: written[k] for k in same} == {k: stored[k] for k in same}


def test_a_bare_encoder_re_initializes_the_head(folder):
    arrays = load_file(PARITY / SAFE)
    bare = {k.removeprefix("dinov2."): x for k, x in arrays.items()}
    save_file({k: x for k, x in bare.items() if "classifier" not in k}, folder / SAFE)
    params, notes = load(folder)
    assert notes[-1] == "head: not loaded; head/bias, head/kernel re-initialized"
    wanted = flatten(load()[0])
    for name, x in flatten(params).items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(x, wanted[name], name)


def test_config_json_specifies_the_model(folder):
    model = check_weights(folder)
    assert (model.name, model.patch_size) == ("dinov2", 7)
    assert (model.layers, model.width, model.heads, model.mlp_width) == (2, 24, 3, 48)


def test_an_activation_that_the_model_lacks(folder):
    path = folder / "config.json"
    changed = {"hidden_act": "gelu_new"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError) as error:
        check_weights(folder)
    assert str(error.value) == (
        f"init_from: {folder}: hidden_act of config.json: expected gelu, got "
        "'gelu_new'. Use weights with this activation."
    )


def test_swiglu_equals_pytorch_and_comes_back_bit_for_bit(tmp_path):
    """Of the giant model; config.json sets ``model.activation``."""
    path = PARITY.parent / "swiglu"
    model = check_weights(path)
    assert (model.activation, model.mlp_width) == ("swiglu", 30)
    size = Size(2, 30, 3, 30)
    module = ViT(size, 5, 7, norm_eps=1e-2, kind="dinov2", activation="swiglu")
    arrays = np.load(path / "logits.npz")
    images = jnp.asarray(arrays["images_14"])
    new = module.init(jax.random.key(0), images, train=False)["params"]
    f = vit_model.family(module, vit_model.Preprocessing(14, 3, [0.5] * 3, [0.5] * 3))
    params, _ = merge(new, f.read(path), facts=f.facts, resize=f.resize, reinit=())
    found = module.apply({"params": params}, images, train=False)
    np.testing.assert_allclose(found, arrays["logits_14"], atol=1e-4)
    f.save(params, tmp_path, "safetensors")
    theirs, ours = load_file(path / SAFE), load_file(tmp_path / SAFE)
    del theirs["dinov2.embeddings.mask_token"]
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, name)
    assert json.loads((tmp_path / "config.json").read_text())["use_swiglu_ffn"]


@pytest.mark.slow
def test_the_giant_model_has_the_published_number_of_parameters():
    module = ViT(SIZES["g"], 1, 14, kind="dinov2", activation="swiglu")
    blank = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, x: module.init(k, x, train=False), jax.random.key(0), blank
    )
    millions = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
    assert round(millions) == 1136


def test_a_vit_has_no_swiglu():
    config = flags.load(VIT, TINY | {"model.activation": "swiglu"})
    with pytest.raises(InputError, match=r"^model.activation: expected one of gelu, "):
        vit_model.make_model(config)


def test_an_mlp_width_that_config_json_cannot_express():
    named = TINY | {"model.name": "dinov2"}
    assert vit_model.make_model(flags.load(VIT, named)).kind == "dinov2"
    config = flags.load(VIT, named | {"model.mlp_width": "20"})
    with pytest.raises(InputError) as error:
        vit_model.make_model(config)
    assert str(error.value) == (
        "model.mlp_width: expected a multiple of model.width 16 for model.name=dinov2, "
        "found 20"
    )


# Two steps, export, transformers


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Parameters after two steps of gradient descent, and their export."""
    images = jax.random.normal(jax.random.key(0), (2, 35, 35, 3))
    step = jax.jit(
        lambda params: jax.tree.map(
            lambda x, dx: x - 0.1 * dx,
            params,
            jax.grad(lambda p: (apply(35)(p, images) ** 2).mean())(params),
        )
    )
    params = jax.device_get(step(step(load()[0])))
    folder = tmp_path_factory.mktemp("dinov2")
    family().save(params, folder, "safetensors")
    return params, folder


def test_a_trained_export_comes_back(exported):
    params, folder = exported
    before, again = flatten(load()[0]), flatten(load(folder)[0])
    for name, x in flatten(params).items():
        if name.endswith("_scale/scale"):
            assert (x != before[name]).any()
        np.testing.assert_array_equal(again[name], x, name)


@pytest.mark.filterwarnings("ignore")
def test_transformers_load_an_export_and_agree(exported):
    torch = pytest.importorskip("torch", reason="torch is in the environment parity")
    transformers = pytest.importorskip(
        "transformers", reason="transformers are in the environment parity"
    )
    params, folder = exported
    model, info = transformers.Dinov2ForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    images = np.load(PARITY / "logits.npz")["images_35"]
    ours = apply(35)(params, jnp.asarray(images))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(images).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_run_by_name_resumes_from_its_export(tmp_path):
    """Also that the program exports no .npz, whose layout has no LayerScale."""
    options = {"model__name": "dinov2", "total_steps": 2, "eval__every": 2}
    train(tmp_path / "run", **options)
    params = flatten(open_run(tmp_path / "run").params)
    export.export(tmp_path / "run", tmp_path / "out")
    overrides = TINY | {"init_from": str(tmp_path / "out"), "optimizer.lr": "0"}
    config = families.check_weights(
        flags.load(VIT, overrides), tasks.families(), given={"init_from"}
    )
    train_program.train(config, tmp_path / "again")
    for name, x in flatten(open_run(tmp_path / "again").params).items():
        np.testing.assert_array_equal(x, params[name], name)
    with pytest.raises(InputError, match="--format: expected one of safetensors, fo"):
        export.export(tmp_path / "run", tmp_path / "npz", format="npz")
