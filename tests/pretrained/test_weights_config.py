"""Fields of the model from config.json of the weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.texts import GLUE
from safetensors.numpy import save_file

from rdrop_jax import flags, tasks
from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import families
from rdrop_jax.training import workdir as workdir_lib

ROOT = Path(__file__).parents[2]
SIZES = {"layers": 3, "width": 48, "heads": 4, "mlp_width": 96}
ENCODER = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
BART = {
    "model_type": "bart",
    "encoder_layers": 2,
    "decoder_layers": 3,
    "d_model": 48,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "max_position_embeddings": 70,
}


def folder(tmp_path, **stored):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    return str(tmp_path)


def checked(spec, overrides):
    config = flags.load(spec, overrides)
    return families.check_weights(config, tasks.families(), given=overrides).model


@pytest.mark.parametrize(
    ("kind", "rows"), [("bert", 70), ("roberta", 72), ("xlm-roberta", 72)]
)
def test_a_text_encoder(tmp_path, kind, rows):
    stored = {"vocab_size": 77, "max_position_embeddings": rows, "pad_token_id": 1}
    path = folder(tmp_path, model_type=kind, **stored, **ENCODER)
    model = checked(f"{GLUE}:files", {"init_from": path})
    assert model.name == kind
    assert (model.vocab_size, model.max_positions) == (77, 70)
    assert {name: model[name] for name in SIZES} == SIZES


def test_a_vision_transformer(tmp_path):
    path = folder(tmp_path, model_type="vit", patch_size=4, **ENCODER)
    model = checked("configs/vit.py", {"init_from": path})
    assert {name: model[name] for name in SIZES} == SIZES
    assert model.patch_size == 4


def test_bart(tmp_path):
    path = folder(tmp_path, **BART)
    model = checked("configs/summarization.py:files", {"init_from": path})
    assert (model.encoder_layers, model.decoder_layers) == (2, 3)
    assert (model.width, model.heads, model.mlp_width) == (48, 4, 96)
    assert model.max_positions == 70


@pytest.mark.parametrize(
    ("name", "value"), [("layers", "2"), ("vocab_size", "99"), ("name", "roberta")]
)
def test_a_field_that_the_user_sets_differently(tmp_path, name, value):
    path = folder(tmp_path, model_type="bert", vocab_size=77, **ENCODER)
    overrides = {"init_from": path, f"model.{name}": value}
    with pytest.raises(InputError, match=rf"model[._]{name if name != 'name' else ''}"):
        checked(f"{GLUE}:files", overrides)
    same = {"init_from": path, "model.layers": "3"}
    assert checked(f"{GLUE}:files", same).layers == 3


def test_the_type_of_the_model_comes_first(tmp_path):
    path = folder(tmp_path, model_type="gpt2", vocab_size=77)
    with pytest.raises(InputError, match=r"expected.*, got 'gpt2'. Families that can"):
        checked(f"{GLUE}:files", {"init_from": path, "model.layers": "2"})


def test_of_a_resumed_run(tmp_path, monkeypatch):
    """The workdir has the fields; the weights may be gone."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "run").mkdir()
    path = folder(tmp_path / "weights", model_type="bert", vocab_size=77, **ENCODER)
    overrides = {"init_from": path}
    config = flags.load(f"{GLUE}:files", overrides)
    whole = families.check_weights(config, tasks.families(), given=overrides)
    workdir_lib.initialize(whole, tmp_path / "run")
    monkeypatch.setattr(workdir_lib, "has_checkpoint", lambda workdir: True)
    resumed = workdir_lib.resumed(config, tmp_path / "run", overrides)
    assert resumed.model.vocab_size == 77
    workdir_lib.check_config(resumed, tmp_path / "run")
    other = {**overrides, "model.vocab_size": "78"}
    with pytest.raises(InputError, match=r"model.vocab_size: workdir 77, now 78"):
        workdir_lib.check_config(
            workdir_lib.resumed(
                flags.load(f"{GLUE}:files", other), tmp_path / "run", other
            ),
            tmp_path / "run",
        )


@pytest.mark.parametrize(
    ("spec", "kind", "field"),
    [
        ("configs/vit.py", "vit", "hidden_act"),
        (f"{GLUE}:files", "xlm-roberta", "hidden_act"),
        ("configs/summarization.py:files", "bart", "activation_function"),
    ],
)
def test_an_activation_that_the_model_lacks(tmp_path, spec, kind, field):
    stored = BART | ENCODER | {"model_type": kind, field: "gelu_new"}
    path = folder(tmp_path, **stored)
    with pytest.raises(InputError) as found:
        checked(spec, {"init_from": path})
    assert str(found.value) == (
        f"init_from: {path}: {field} of config.json: expected gelu, got 'gelu_new'. "
        "Use weights with this activation."
    )
    folder(tmp_path, **stored | {"model_type": "gpt2"})
    with pytest.raises(InputError, match=r"expected.*, got 'gpt2'"):
        checked(spec, {"init_from": path})


LM = "configs/lm.py"


@pytest.fixture
def run_of_another_size(tmp_path):
    made = flags.load(LM, {"model.width": "48", "model.activation": "relu"})
    workdir_lib.initialize(made, tmp_path)
    step = tmp_path / "checkpoints" / "step_3"
    step.mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    return str(tmp_path)


def test_a_workdir_specifies_the_model(run_of_another_size):
    source = run_of_another_size
    assert checked(LM, {"init_from": source}).width == 48
    model = checked(LM, {"init_from": f"{source}:3", "model.dropout": "0.3"})
    assert (model.width, model.activation, model.dropout) == (48, "relu", 0.3)
    other = {"init_from": source, "model.activation": "gelu"}
    with pytest.raises(InputError, match=r"^model.activation: expected 'relu', as in "):
        checked(LM, other)
    assert checked(LM, other | {"reinit": "head"}).activation == "gelu"
    assert checked(LM, {"init_from": source, "model.activation": "relu"}).width == 48


def test_a_workdir_of_another_task_specifies_nothing(run_of_another_size):
    overrides = {"init_from": run_of_another_size}
    config = flags.load("configs/vit.py", overrides)
    found = families.check_weights(config, tasks.families(), given=overrides)
    assert found.model == config.model
    # From Python, without the fields that the user sets.
    config = flags.load(LM, overrides)
    assert families.check_weights(config, tasks.families()).model == config.model
