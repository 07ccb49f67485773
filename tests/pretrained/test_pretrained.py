"""Weights of other libraries: the same logits as PyTorch, and every bad file told."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.programs import run as run_program
from helpers.programs import train_argv
from helpers.tiny import TINY, VIT, train
from helpers.vit_files import GOOGLE, MODEL, PARITY, SAFE
from safetensors.numpy import load_file, save_file

from rdrop_jax import export, flags
from rdrop_jax import train as train_program
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.models.sizes import Size
from rdrop_jax.pretrained import vision, weight_files
from rdrop_jax.pretrained.initialize import Weights, flatten, merge
from rdrop_jax.tasks.image_classification import vit_model


def load(path, size=16, module=MODEL, **options):
    """Parameters of the model of tests/parity, and notes."""
    family = vit_model.family(
        module, vit_model.Preprocessing(size, 3, [0.5] * 3, [0.5] * 3)
    )
    blank = jnp.zeros((1, size, size, 3))
    template = module.init(jax.random.key(0), blank, train=False)["params"]
    return merge(
        template,
        family.read(path),
        facts=family.facts,
        resize=family.resize,
        reinit=family.reinit,
        **options,
    )


def logits(params, size=16, module=MODEL):
    images = jnp.asarray(np.load(PARITY / "logits.npz")[f"images_{size}"])
    return np.asarray(module.apply({"params": params}, images, train=False))


def expected(size=16):
    return np.load(PARITY / "logits.npz")[f"logits_{size}"]


def assert_equal(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(x), name)


@pytest.fixture
def folder(tmp_path):
    """A copy of the model folder to change; ``edit(arrays)`` writes its weights."""
    return Path(shutil.copytree(PARITY, tmp_path / "model"))


def edit(folder, change):
    save_file(change(load_file(SAFE)), folder / "model.safetensors")


# The same function as PyTorch's


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("path", [PARITY, SAFE, GOOGLE], ids=lambda p: p.name)
def test_logits_equal_pytorch(path, size):
    params, notes = load(path, size)
    np.testing.assert_allclose(logits(params, size), expected(size), atol=1e-5)
    assert ("positions: resized from (1, 17, 24) to (1, 37, 24)" in notes) == (
        size == 24
    )


def test_both_layouts_hold_the_same_parameters():
    assert_equal(load(GOOGLE)[0], load(PARITY)[0])


def test_the_epsilon_of_layer_norms_is_told_and_obeyed():
    other = dataclasses.replace(MODEL, norm_eps=1e-6)
    params, notes = load(PARITY, module=other)
    assert any("--config.model.norm_eps=0.01" in note for note in notes)
    assert np.abs(logits(params, module=other) - expected()).max() > 1e-3
    assert not load(PARITY)[1]


def test_other_pixel_statistics_are_noted(tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.5, 0.5, 0.5]
    for channels in (mean, std):
        images = vit_model.Preprocessing(16, 3, channels, std)
        folder = tmp_path / str(channels[0])
        folder.mkdir()
        params, _ = load(PARITY)
        vit_model.family(MODEL, images).save(params, folder, "safetensors")
    (note,) = load(tmp_path / "0.485")[1]
    assert note.endswith("--config.data.mean=[0.485,0.456,0.406] makes them equal")
    assert not load(tmp_path / "0.5")[1]


def test_positions_keep_corners_and_class_token():
    old = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    new = vision.resize_positions(old, (1, 10, 3))
    assert new.shape == (1, 10, 3)
    np.testing.assert_array_equal(new[:, 0], old[:, 0])
    np.testing.assert_allclose(new[0, [1, 3, 7, 9]], old[0, [1, 4, 13, 16]], rtol=1e-6)
    # The middle of 4x4 is the mean of the four in the middle.
    middle = old[0, [6, 7, 10, 11]].mean(0)
    np.testing.assert_allclose(new[0, 5], middle, rtol=1e-5)
    for shape in [(1, 12, 3), (1, 10, 4), (1, 0, 3), (1, 1, 3)]:
        assert vision.resize_positions(old, shape) is None


# Names and types that files come with


def test_a_bare_encoder_leaves_the_head_new(folder):
    def bare(arrays):
        kept = {k.removeprefix("vit."): x for k, x in arrays.items()}
        kept = {k: x for k, x in kept.items() if "classifier" not in k}
        pooler = {"pooler.dense.weight": np.eye(24, dtype=np.float32)}
        return kept | pooler

    edit(folder, bare)
    params, notes = load(folder)
    assert notes == [
        "pooler.dense.weight: not loaded; this model has no such layer",
        "head: not loaded; head/bias, head/kernel re-initialized",
    ]
    assert not np.asarray(params["head"]["kernel"]).any()
    params["head"] = load(PARITY)[0]["head"]
    assert_equal(params, load(PARITY)[0])


@pytest.mark.parametrize(
    ("kind", "atol"), [(np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)]
)
def test_half_precision_becomes_float32(folder, kind, atol):
    edit(folder, lambda arrays: {k: x.astype(kind) for k, x in arrays.items()})
    params = flatten(load(folder, 24)[0])
    for name, x in flatten(load(PARITY, 24)[0]).items():
        assert params[name].dtype == np.float32
        np.testing.assert_allclose(params[name], x, atol=atol)


def shard(folder):
    """The same weights in two files and an index."""
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (name, x) in enumerate(arrays.items()):
        parts["ab"[i % 2] + ".safetensors"][name] = x
    for name, part in parts.items():
        save_file(part, folder / name)
    where = {k: name for name, part in parts.items() for k in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index, where


def test_weights_in_parts(folder):
    shard(folder)
    assert_equal(load(folder)[0], load(PARITY)[0])
    assert set(vit_model.read(folder, 1e-2).sha256) == {
        "a.safetensors",
        "b.safetensors",
    }


def test_other_spellings_of_an_npz(tmp_path):
    theirs = dict(np.load(GOOGLE))
    newer = {
        k.replace("LayerNorm_2", "LayerNorm_1")
        .replace("MlpBlock_3", "MlpBlock_0")
        .replace("Attention_1", "Attention_0"): x
        for k, x in theirs.items()
    }
    target = {f"opt/target/{k}": x for k, x in theirs.items()}
    for name, arrays in [
        ("newer", newer),
        ("target", target | {"opt/state/step": np.int32(3)}),
    ]:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert_equal(load(tmp_path / f"{name}.npz")[0], load(GOOGLE)[0])
    before = {
        "pre_logits/kernel": np.eye(24, dtype=np.float32),
        "pre_logits/bias": np.zeros(24, np.float32),
    }
    np.savez(tmp_path / "before.npz", **theirs, **before)
    params, notes = load(tmp_path / "before.npz")
    assert notes[0] == "pre_logits: not loaded, nor the head that follows it"
    assert not np.asarray(params["head"]["kernel"]).any()


# The merge


TEMPLATE = {
    "body": {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))},
    "head": {"bias": jnp.full(2, 7.0), "kernel": jnp.full((3, 2), 7.0)},
}


def loaded(**changed):
    arrays = {
        "body/a": np.ones(3, np.float32),
        "body/b": np.ones((2, 2), np.float16),
        "head/bias": np.ones(2, np.float32),
        "head/kernel": np.ones((3, 2), np.float32),
    } | {k.replace("__", "/"): x for k, x in changed.items()}
    return Weights({k: x for k, x in arrays.items() if x is not None}, {"heads": 4})


def test_the_merge_lists_every_difference():
    weights = loaded(
        body__a=None, body__b=np.ones((2, 2), int), head__bias=np.ones(5), c=np.ones(1)
    )
    with pytest.raises(InputError) as error:
        merge(TEMPLATE, weights, facts={"heads": 2, "unknown": 1})
    assert str(error.value).splitlines() == [
        "init_from: weights of another model",
        "  heads: expected 2, found 4",
        "  body/a: expected (3,), found none",
        "  body/b: expected (2, 2), found (2, 2) of int64",
        "  c: expected none, found (1,)",
        "  head/bias: expected (2,), found (5,)",
    ]


def test_the_merge_takes_all_in_the_types_of_the_template():
    params, notes = merge(TEMPLATE, loaded(), reinit=("head",))
    assert not notes
    assert_equal(params, jax.tree.map(jnp.ones_like, TEMPLATE))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_a_part_that_does_not_fit_stays_new_as_a_whole():
    for weights in [
        loaded(head__bias=np.ones(5)),
        loaded(head__kernel=None),
        loaded(head__more=np.ones(1)),
        loaded(head__bias=None, head__kernel=None),
    ]:
        params, notes = merge(TEMPLATE, weights, reinit=("head",))
        assert notes == ["head: not loaded; head/bias, head/kernel re-initialized"]
        assert_equal(params["head"], TEMPLATE["head"])
        assert float(params["body"]["a"][0]) == 1


def test_a_part_stays_new_where_asked():
    params, notes = merge(TEMPLATE, loaded(), fresh=("body",))
    assert_equal(params["body"], TEMPLATE["body"])
    assert notes == ["body: not loaded; body/a, body/b re-initialized"]
    with pytest.raises(InputError, match="reinit: expected a prefix of a param"):
        merge(TEMPLATE, loaded(), fresh=("bod",))


def test_another_model_is_listed_in_full():
    wide = dataclasses.replace(MODEL, size=Size(3, 24, 4, 48), patch_size=8)
    for path in (PARITY, GOOGLE):
        with pytest.raises(InputError) as error:
            load(path, 16, wide)
        message = str(error.value)
        for line in [
            "model.heads: expected 4, found 3",
            "embedding/kernel: expected (192, 24), found (48, 24)",
            "block_1/mlp/mlp_out/kernel: expected (48, 24), found (40, 24)",
            "block_2/attention/query/kernel: expected (24, 24), found none",
        ]:
            assert f"\n  {line}" in message
        assert "block_0/attention" not in message


def test_missing_and_foreign_arrays_are_listed(folder):
    first = "vit.encoder.layer.0."
    edit(
        folder,
        lambda arrays: (
            {k: x for k, x in arrays.items() if k != f"{first}output.dense.bias"}
            | {f"{first}lora.weight": np.ones(2, np.float32)}
        ),
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_act": "relu", "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        load(folder)
    assert str(error.value).splitlines()[1:] == [
        "  model_type: expected 'vit', found 'bert'",
        "  hidden_act: expected 'gelu', found 'relu'",
        "  block_0/mlp/mlp_out/bias: expected (24,), found none",
        "  encoder.layer.0.lora.weight: expected none, found (2,)",
    ]


# Files that cannot be used


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def npz_entry(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cls.npy", content)
    return path


def with_objects(folder):
    np.savez(folder / "x.npz", cls=np.array([{}], dtype=object))
    return folder / "x.npz"


def too_long(folder):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,), }\n"
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return npz_entry(folder / "x.npz", head + b"\0" * 8)


def bomb(folder):
    return npz_entry(folder / "x.npz", b"\0" * 2**27)


def integers(folder):
    edit(folder, lambda arrays: arrays | {"x": np.ones(2, np.int32)})
    return folder


def without_config(folder):
    (folder / "config.json").unlink()
    return folder


def broken_config(folder):
    (folder / "config.json").write_text("[1]")
    return folder


def without_weights(folder):
    (folder / "model.safetensors").unlink()
    return folder


def changed_index(folder, name, where):
    index, names = shard(folder)
    index.write_text(json.dumps({"weight_map": names | {name: where}}))
    return folder


def half_a_download(folder):
    shard(folder)
    (folder / "b.safetensors").unlink()
    return folder


def renamed(folder, name):
    return (folder / "model.safetensors").rename(folder / name)


BAD = {
    "nothing": (lambda f: f / "nowhere", "found nothing at"),
    "no file": (lambda f: f / "nowhere.npz", "found nothing at"),
    "another type": (lambda f: renamed(f, "pytorch_model.bin"), "expected a workdir"),
    "no npz": (lambda f: renamed(f, "x.npz"), "truncated file or another"),
    "cut npz": (lambda f: cut(f / "google.npz", 50_000), "truncated file or another"),
    "objects": (with_objects, "cls.npy: expected an array of numbers, found pickled"),
    "size": (too_long, r"expected the bytes of float32 \(9999999999,\), found 8"),
    "bomb": (bomb, "expected arrays, found 134217728 bytes packed into"),
    "cut header": (lambda f: cut(f / "model.safetensors", 99).parent, "truncated file"),
    "cut data": (
        lambda f: cut(f / "model.safetensors", 40_000).parent,
        "truncated file",
    ),
    "empty": (lambda f: cut(f / "model.safetensors", 0), "truncated file"),
    "integers": (integers, "x: expected one of F64, F32, F16, BF16, found I32"),
    "no config": (without_config, "expected config.json, found none"),
    "config": (broken_config, "config.json: expected a JSON object"),
    "no weights": (
        without_weights,
        "which has neither weights nor the config of a run",
    ),
    "a part": (half_a_download, "expected b.safetensors, found no such file"),
    "outside": (
        lambda f: changed_index(f, "x", "../secret.safetensors"),
        r"expected files in its folder, found '../secret.safetensors'",
    ),
    "index": (
        lambda f: changed_index(f, "x", "a.safetensors"),
        "expected the arrays that the index lists, found a difference in x",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_told_before_jax(folder, make, message):
    bad = make(folder)
    config = flags.load(VIT, TINY | {"init_from": str(bad)})
    with pytest.raises(InputError, match=message) as error:
        train_program.check_start(config, folder / "run")
    assert str(bad) in str(error.value)
    if weight_files.is_weights(bad) and bad.exists():
        with pytest.raises(InputError, match=message):
            weight_files.read(bad)


def test_damage_that_headers_do_not_show_is_found_on_reading(folder):
    data = bytearray(GOOGLE.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "google.npz").write_bytes(data)
    with pytest.raises(InputError, match="truncated file or another format: Bad CRC"):
        weight_files.read(folder / "google.npz")


def test_the_program_ends_with_the_message(tmp_path):
    argv = train_argv(tmp_path / "run", "--config.init_from=ViT-B_16.npz")
    code, _, err = run_program("train", *argv)
    assert code == 2
    assert err.startswith("error: init_from: expected a workdir, WORKDIR:STEP, a .npz")
    assert "found nothing at ViT-B_16.npz. docs/pretrained.md lists" in err
    assert not (tmp_path / "run").exists()


def test_a_workdir_without_that_checkpoint(finished):
    weight_files.check_source(f"{finished[0]}:6")
    with pytest.raises(
        InputError, match=r"init_from: expected a checkpoint in .*steps"
    ):
        weight_files.check_source(f"{finished[0]}:5")


# Runs


def test_an_export_comes_back_bit_for_bit_and_starts_a_run(finished, tmp_path):
    run = open_run(finished[0])
    for format in run.task.pretrained.formats:
        out = tmp_path / format
        assert export.export(finished[0], out, format=format) == run.step
        path = out / "model.npz" if format == "npz" else out
        weights = run.task.pretrained.read(path)
        template = jax.tree.map(jnp.zeros_like, run.params)
        assert_equal(merge(template, weights)[0], run.params)
    assert weights.facts == {"model.heads": 2}
    result = train(tmp_path / "run", init_from=path, optimizer__lr=0, seed=5)
    assert result["init"] == {
        "from": str(path),
        "sha256": {"model.npz": checksums.sha256(path)},
    }
    assert_equal(open_run(tmp_path / "run").params, run.params)
    path.unlink()  # not needed again, nor to know where it came from
    (tmp_path / "run" / "result.json").unlink()
    again = train(tmp_path / "run", init_from=path, optimizer__lr=0, seed=5)
    assert again | {"run": result["run"]} == result


@pytest.mark.slow
def test_another_number_of_classes_starts_with_a_new_head(finished, tmp_path, capsys):
    options = {"init_from": finished[0], "optimizer__lr": 0, "total_steps": 1}
    result = train(tmp_path / "more", data__num_classes=12, **options)
    (name,) = result["init"]["sha256"]
    assert name == f"step_{finished[1]['checkpoint_step']}/checksums.json"
    said = "init_from: head: not loaded; head/bias, head/kernel re-initialized"
    assert said in capsys.readouterr().out
    train(tmp_path / "asked", reinit="head, norm", **options)
    assert (
        "init_from: norm: not loaded; norm/bias, norm/scale" in capsys.readouterr().out
    )
    for folder in ("more", "asked"):
        params = open_run(tmp_path / folder).params
        assert not np.asarray(params["head"]["kernel"]).any()
        kept = open_run(finished[0]).params["block_0"]
        assert_equal(params["block_0"], kept)
    assert (np.asarray(params["norm"]["scale"]) == 1).all()


def test_heads_that_no_shape_tells_are_compared(finished, tmp_path):
    with pytest.raises(InputError, match=r"\n  model.heads: expected 4, found 2$"):
        train(tmp_path, init_from=finished[0], model__heads=4)


def test_exports_that_cannot_be_written(finished, tmp_path):
    (tmp_path / "mine").write_text("")
    for output, options, message in [
        (tmp_path, {}, r"--output: expected a new or empty folder, found .* with mine"),
        (tmp_path / "mine" / "x", {}, "--output: cannot write in"),
        (tmp_path / "a", {"format": "onnx"}, "--format: expected one of safetensors,"),
        (
            tmp_path / "b",
            {"checkpoint": "5"},
            "--checkpoint: expected best, last, average:N or",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            export.export(finished[0], output, **options)
    with pytest.raises(InputError, match="--workdir: no run in"):
        export.export(tmp_path / "nowhere", tmp_path / "c")


def test_the_export_program(finished, tmp_path):
    code, out, err = run_program(
        "export", "--workdir", finished[0], "--output", tmp_path / "out"
    )
    assert code == 0, err
    assert out.startswith("step ")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    modes = {p.stat().st_mode for p in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("channels", "interpolation", "eval_crop", "expected"),
    [
        (
            1,
            "bilinear",
            0.0,
            {
                "image_processor_type": "ViTImageProcessor",
                "resample": 2,
                "do_convert_rgb": False,
            },
        ),
        (
            3,
            "bicubic",
            0.875,
            {
                "image_processor_type": "BitImageProcessor",
                "resample": 3,
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "do_convert_rgb": True,
            },
        ),
    ],
)
def test_the_exported_preprocessing_is_that_of_evaluation(
    channels, interpolation, eval_crop, expected
):
    half = [0.5] * channels
    images = vit_model.Preprocessing(
        224, channels, half, half, (), interpolation, eval_crop
    )
    found = vit_model._hf_preprocessor(images)
    assert found | expected == found


@pytest.mark.filterwarnings("ignore")
def test_transformers_load_an_export_and_agree(finished, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the environment parity")
    transformers = pytest.importorskip(
        "transformers", reason="transformers are in the environment parity"
    )
    export.export(finished[0], tmp_path / "out")
    model = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    model, info = model
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    assert model.config.num_labels == 10
    run = open_run(finished[0])
    pixels = run.task.predictor(run.mesh).rows("test")[:8]
    processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    assert (*processor.image_mean, *processor.image_std) == (0.5, 0.5)
    images = (np.stack(pixels).astype(np.float32) / 255 - 0.5) / 0.5
    ours = run.task.forward(run.params, {"image": jnp.asarray(images)}, None)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(images).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=1e-5)
