"""Configs and command lines: every message names field, expected and found."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdrop_jax import compare, train
from rdrop_jax import config as config_lib
from rdrop_jax.cli import checks, flags
from rdrop_jax.errors import InputError
from rdrop_jax.training import workdir as workdir_lib

ROOT = Path(__file__).parents[2]
VIT = str(ROOT / "configs" / "vit.py")


def load(**overrides):
    return flags.load(VIT, {k.replace("__", "."): v for k, v in overrides.items()})


def test_overrides_keep_their_types():
    config = load(
        rdrop__alpha="0",
        model__remat="true",
        model__dtype="bfloat16",
        model__layers="3",
        total_steps="7",
        eval__every="2 epochs",
    )
    assert config.rdrop.alpha == 0.0
    assert isinstance(config.rdrop.alpha, float)
    assert config.model.remat is True
    assert config.model.layers == 3
    assert config.total_steps == 7
    assert config.eval.every == "2 epochs"
    assert load(rdrop__num_passes="2").rdrop.num_passes == 2
    assert load(rdrop__num_passes="none").rdrop.num_passes is None


def test_none_resets_what_a_preset_sets():
    translation = str(ROOT / "configs" / "nmt.py:files")
    assert flags.load(translation, {}).model.width
    assert flags.load(translation, {"model.width": "none"}).model.width is None


def test_a_size_replaces_the_widths_of_a_preset():
    given = {"model.size": "vaswani_wmt_en_de_big", "model.heads": "8"}
    model = flags.load(str(ROOT / "configs" / "nmt.py:files"), given).model
    assert [model.encoder_layers, model.width, model.heads] == [None, None, 8]


def test_a_run_keeps_the_widths_that_a_size_did_not_replace(tmp_path):
    spec, given = str(ROOT / "configs" / "nmt.py:files"), {"model.size": "iwslt_de_en"}
    stored = flags.load(spec, {}).to_dict() | {"version": "0.1.0"}  # with widths
    (tmp_path / "config.json").write_text(json.dumps(stored))
    step = tmp_path / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    config = flags.load(spec, given)
    assert config.model.width is None
    resumed = workdir_lib.resumed(config, tmp_path, given)
    assert resumed.model.width == stored["model"]["width"]
    assert not config_lib.differences(workdir_lib.read(tmp_path), resumed)


def test_a_size_of_an_own_config(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rdrop_jax.config import base_config, finish\n\n"
        "def get_config():\n"
        "    c = base_config()\n"
        "    c.task = 'image_classification'\n"
        "    c.model.update(size='S', width=8, dropout=0.1)\n"
        "    return finish(c)\n"
    )
    assert flags.load(str(file), {"model.size": "L"}).model.width == 8


def test_data_that_an_embedded_dataset_would_ignore(tmp_path):
    config, given = flags.load(VIT, {"data.dir": "x"}), {"data.dir", "seed"}
    argv = ["--config", VIT, f"--workdir={tmp_path}"]
    message = (
        "^data.dir: expected none with data.name=digits, .* got x. .* vit.py:folder"
    )
    for flag in ("--config.data.dir=x", "--vary=data.dir=x,y", "--ablate=data.dir=x"):
        with pytest.raises(InputError, match=message):
            compare.main([*argv, flag])
    with pytest.raises(InputError, match=message):
        train.main([*argv, "--config.data.dir=x"])
    assert not list(tmp_path.iterdir())
    train.check_start(config, tmp_path, given)  # runs of a comparison begun before
    config.data.dir = ""
    checks.check_data_fields(config, given)
    with config.unlocked():
        config.task, config.data.dir = "own.py", "x"
    checks.check_data_fields(config, given)  # the task may read it


def test_tuples_as_they_are_printed():
    config = load(rdrop__dropouts="[0.1, 0.3]", log__trackers="['tensorboard']")
    assert config.rdrop.dropouts == (0.1, 0.3)
    assert config.log.trackers == ("tensorboard",)


MESSAGES = {
    "--config.rdrop.alpa: no such field. Did you mean rdrop.alpha": ("rdrop.alpa", "1"),
    "--config.lr: no such field. Did you mean optimizer.lr?": ("lr", "1"),
    '--config.num_epochs: no such field. Set --config.total_steps="10 epochs".': (
        "num_epochs",
        "1",
    ),
    "--config.rdrop is a group: expected one of its fields, rdrop.alpha": (
        "rdrop",
        "1",
    ),
    "--config.seed: expected an integer, found '1.5'": ("seed", "1.5"),
    "--config.rdrop.alpha: expected a number, found 'big'": ("rdrop.alpha", "big"),
    "--config.model.remat: expected true or false, found 'yes'": ("model.remat", "yes"),
    "rdrop.alpha: expected a finite number, at least 0, found -1.0": (
        "rdrop.alpha",
        "-1",
    ),
    "rdrop.alpha: expected a finite number, at least 0, found inf": (
        "rdrop.alpha",
        "inf",
    ),
    "total_steps: expected steps or 'N epochs', found '1e3'": ("total_steps", "1e3"),
    "eval.every: expected steps or 'N epochs' or 'N%', found '1 epok'": (
        "eval.every",
        "1 epok",
    ),
    "optimizer.b2: expected in [0, 1), found 1.0": ("optimizer.b2", "1"),
    "optimizer.eps: expected a finite number": ("optimizer.eps", "-1"),
    "optimizer.shrink: expected a finite number": ("optimizer.shrink", "-1"),
    "optimizer.period_mult: expected a finite number": ("optimizer.period_mult", "inf"),
    "optimizer.momentum: expected in [0, 1), found 2.0": ("optimizer.momentum", "2"),
    "optimizer.weight_decay: expected a finite number": (
        "optimizer.weight_decay",
        "-1",
    ),
    "optimizer.lr: expected a finite number, at least 0, found nan": (
        "optimizer.lr",
        "nan",
    ),
    "rdrop.num_passes: expected none, or at least 1, found 0": (
        "rdrop.num_passes",
        "0",
    ),
    "rdrop.alpha=1.0 needs dropout: expected one of": ("model.dropout", "0"),
    "model.dtype: expected one of float32": ("model.dtype", "int8"),
    "optimizer.name: expected one of adam": ("optimizer.name", "adan"),
    "rdrop.divergence: expected one of symmetric_kl": ("rdrop.divergence", "kl"),
    "--config.rdrop.alpha: expected a number, found 'none'": ("rdrop.alpha", "none"),
    "--config.batch_size: expected an integer, found 'none'": ("batch_size", "none"),
    "seed: expected from 0 to 9223372036854775807, found -1": ("seed", "-1"),
    "model.dropout: expected in [0, 1), found 1.0": ("model.dropout", "1"),
    "accum_steps: expected a divisor of batch_size=32, found 3": ("accum_steps", "3"),
    "rdrop.every: expected at least 1, found 0": ("rdrop.every", "0"),
    "rdrop.dropouts: expected a rate in [0, 1) for each of 2 passes, or (), found "
    "(0.1, 0.2, 0.3)": ("rdrop.dropouts", "(0.1, 0.2, 0.3)"),
    "rdrop.dropouts: expected a rate in [0, 1) for each of 2 passes, or (), found "
    "(0.1,)": ("rdrop.dropouts", "(0.1,)"),
    "of 2 passes, or (), found (0.1, 1.5)": ("rdrop.dropouts", "(0.1, 1.5)"),
    "--config.rdrop.dropouts: expected a tuple, found '0.1'": ("rdrop.dropouts", "0.1"),
    "model.fused_attention: expected false with model.dtype=float32, got true": (
        "model.fused_attention",
        "true",
    ),
    "checkpoint.keep: expected at least 2, found 1": ("checkpoint.keep", "1"),
    "rdrop.label_smoothing: expected in [0, 1), found 1.0": (
        "rdrop.label_smoothing",
        "1",
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_fields_are_named(message):
    with pytest.raises(InputError, match=r".*") as error:
        flags.load(VIT, dict([MESSAGES[message]]))
    assert message in str(error.value)


def test_passes_of_different_rates_are_not_mapped_over():
    rates = {"rdrop.dropouts": "(0, 0.3)", "model.dropout": "0"}
    assert flags.load(VIT, rates).rdrop.dropouts == (0, 0.3)
    with pytest.raises(InputError, match=r"rdrop\.how: expected auto or unroll"):
        flags.load(VIT, rates | {"rdrop.how": "vmap"})


def test_rates_take_the_place_of_the_model_s():
    with pytest.raises(InputError, match="needs dropout"):
        flags.load(VIT, {"rdrop.dropouts": "(0, 0)", "model.dropout": "0.1"})
    with pytest.raises(InputError, match=r"expected \(\) for one pass, found \(0.1,\)"):
        flags.load(VIT, {"rdrop.dropouts": "(0.1,)", "rdrop.num_passes": "1"})


def test_dropout_zero_is_fine_without_alpha():
    assert load(model__dropout="0", rdrop__alpha="0").model.dropout == 0.0
    assert load(model__dropout="0", rdrop__num_passes="1").model.dropout == 0.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{VIT}:dmo", "preset 'dmo': no such preset. Did you mean demo?"),
        ("nowhere/vit.py", "no file 'nowhere/vit.py'"),
        ("configs/vt.py", "no file 'configs/vt.py'. Did you mean vit.py?"),
    ],
)
def test_unknown_presets_and_files(spec, message):
    with pytest.raises(InputError, match=r".*") as error:
        flags.load(spec, {})
    assert message in str(error.value)


def test_a_config_file_of_the_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return None\n")
    assert flags.find_file(str(file)) == file
    file.write_text("x = 1\n")
    with pytest.raises(InputError, match=r"has no function get_config"):
        flags.load(str(file), {})


def test_command_line_words():
    parser = flags.Parser(prog="x")
    parser.add_argument("--workdir")
    parser.add_argument("--config")
    args, overrides = flags.parse(
        parser, ["--workdir", "a", "--config.seed", "3", "--config.rdrop.alpha=-1"]
    )
    assert args.workdir == "a"
    assert overrides == {"seed": "3", "rdrop.alpha": "-1"}
    for argv, message in [
        (["extra"], "unexpected argument 'extra'"),
        (["--wrkdir=b"], r"unexpected argument '--wrkdir=b'. Did you mean --workdir\?"),
        (["--epochs", "1"], r"'--epochs'. Set --config.total_steps=.10 epochs"),
        (["--alpha", "1"], r"'--alpha'. Did you mean --config.rdrop.alpha\?"),
        (["--xyz"], "unexpected argument '--xyz'.$"),
        (["--config.seed"], "--config.seed: expected a value, found none"),
    ]:
        with pytest.raises(InputError, match=message):
            flags.parse(parser, argv)


def test_durations():
    to_steps = config_lib.to_steps
    assert to_steps("x", 30, 10.0) == 30
    assert to_steps("x", "30 steps", 10.0) == 30
    assert to_steps("x", "2.5 epochs", 10.0) == 25
    assert to_steps("x", "1epoch", 0.3) == 1
    assert to_steps("x", "5%", 10.0, 200) == 10
    assert to_steps("x", 0, 10.0) == 0
    for value in ("soon", "5%", "1.5", True, "-3"):
        with pytest.raises(InputError, match="x: expected"):
            to_steps("x", value, 10.0)


def test_resolve_leaves_the_original_alone():
    config = load(total_steps="3 epochs")
    resolved = config_lib.resolve(config, 20.0)
    assert (resolved.total_steps, resolved.optimizer.warmup) == (60, 3)
    assert config.total_steps == "3 epochs"
    with pytest.raises(AttributeError):
        resolved.optimizer.learning_rate = 1.0


def test_differences_that_matter():
    stored = load().to_dict()
    now = load(rdrop__alpha="2", total_steps="5", log__every="7", eval__patience="3")
    assert config_lib.differences(stored, now) == ["rdrop.alpha: workdir 1.0, now 2.0"]
    assert config_lib.differences(stored, load()) == []


def test_every_field_has_a_check_that_accepts_its_default():
    checks.check_values(load())
    names = config_lib.flatten(load())
    assert set(checks.CHECKS) <= set(names)
    assert set(config_lib.DURATIONS) <= set(names)


def run(*argv):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return done, time.perf_counter() - start


def test_a_typo_is_answered_before_jax_starts(tmp_path):
    argv = ["rdrop_jax.train", "--config", "configs/vit.py", "--workdir", str(tmp_path)]
    done, seconds = min(
        (run(*argv, "--config.lr=1") for _ in range(3)), key=lambda x: x[1]
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config.lr: no such field. Did you mean")
    assert "Traceback" not in done.stderr
    assert seconds < 1.0
    assert not list(tmp_path.iterdir())


def test_help_names_the_flags_and_every_shared_field():
    done, _ = run("rdrop_jax.train", "--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert "--config.optimizer.lr = 0.001  # peak learning rate" in done.stdout
    for name in config_lib.flatten(config_lib.base_config()):
        assert f"--config.{name} = " in done.stdout


def test_print_config_reads_no_data_and_starts_no_jax(tmp_path):
    code = (
        "import sys; from rdrop_jax.cli import train; train.main(sys.argv[1:])\n"
        "assert 'jax' not in sys.modules"
    )
    argv = ["--config=configs/vit.py:imagenet", "--print_config", "--config.seed=7"]
    argv.append(f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "seed = 7" in done.stdout
    assert not list(tmp_path.iterdir())
