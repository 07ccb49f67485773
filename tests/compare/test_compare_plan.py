"""Runs of a comparison, and invalid options."""

import pytest
from helpers.tiny import VIT

from rdrop_jax import flags
from rdrop_jax.compare import comparison_options as options_lib
from rdrop_jax.compare import plan
from rdrop_jax.compare import program as compare
from rdrop_jax.errors import InputError


def read(*argv):
    argv = ["--config", VIT, "--workdir", "w", *argv]
    options, _, _ = compare.read_options(argv)
    return options


def settings(options, arm, **kwargs):
    steps = [10.0] * len(options.variants)
    return plan.make_settings(options, steps, arm, **kwargs)


def test_every_arm_has_the_same_number_of_settings():
    options = read(
        "--alphas=0,1,5", "--vary=model.dropout=0.1,0.2,0.3", "--arms=two_passes"
    )
    assert options.arms == ("plain", "rdrop", "two_passes")
    assert options.settings_per_arm == 6
    for arm in options_lib.ARMS:
        labels = [s.label for s in settings(options, arm)]
        assert len(set(labels)) == 6
    rdrop = [s.label for s in settings(options, "rdrop")]
    assert rdrop[:2] == ["alpha=1, dropout=0.1", "alpha=5, dropout=0.1"]
    plain = [s.label for s in settings(options, "plain")]
    assert plain[:2] == ["dropout=0.1, lr=0.003", "dropout=0.1, lr=0.0015"]


def test_fields_that_differ_between_arms():
    options = read("--config.total_steps=60 epochs", "--config.data.labelled=320")
    (plain,) = settings(options, "plain")
    loaded = flags.load(VIT, plain.overrides)
    assert (loaded.total_steps, loaded.eval.every, loaded.log.every) == (600, 50, 50)
    assert loaded.rdrop.objective_scale == "mean"
    changed = {
        arm: {
            name: value
            for name, value in settings(options, arm)[0].overrides.items()
            if value != plain.overrides.get(name)
        }
        for arm in options_lib.ARMS
    }
    assert changed == {
        "plain": {},
        "rdrop": {"rdrop.alpha": "1.0"},
        "two_passes": {"rdrop.num_passes": "2"},
        "double_batch": {"batch_size": "64"},
        "equal_compute": {},
    }
    three = read("--config.rdrop.num_passes=3", "--config.rdrop.dropouts=(.1,.2,.3)")
    rates = {
        arm: flags.load(VIT, settings(three, arm)[0].overrides).rdrop
        for arm in options_lib.ARMS
    }
    for arm, r in rates.items():
        several = arm in ("rdrop", "two_passes")
        assert r.num_passes == (3 if several else None), arm
        assert r.dropouts == ((0.1, 0.2, 0.3) if several else ()), arm
    (more,) = settings(options, "equal_compute", cost_ratio=1.7)
    assert more.overrides["total_steps"] == "1020"
    assert more.overrides["optimizer.warmup"] == "51"  # 5 %
    assert more.overrides["eval.every"] == "50"


def test_runs_have_present_names_of_fields():
    options = read("--config.log.tensorboard=false", "--vary=model.variant=S,B")
    for setting in settings(options, "rdrop"):
        assert setting.overrides["log.trackers"] == "()"
        assert setting.overrides["model.size"] == setting.values["model.variant"]
        assert not {"log.tensorboard", "model.variant"} & {*setting.overrides}


def test_a_preset_with_passes_of_its_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from rdrop_jax import flags\n\n\ndef get_config():\n"
        f"    return flags.load({VIT!r}, {{'rdrop.num_passes': '3'}})\n"
    )
    options, _, _ = compare.read_options(["--config", str(file), "--workdir", "w"])
    passes = [settings(options, arm)[0].num_passes for arm in ("plain", "rdrop")]
    assert passes == [1, 3]


def test_an_ablation_without_a_number_of_passes():
    options = read("--ablate=rdrop.num_passes=None")
    (setting,) = settings(options, "rdrop.num_passes=None")
    assert setting.num_passes == 2


def test_an_ablation_is_rdrop_with_another_field():
    arms = ("rdrop.every=2", "rdrop.alpha=5", "rdrop.dropouts=(0.1,0.3)")
    options = read("--alphas=2", *(f"--ablate={arm}" for arm in arms))
    assert options.arms == ("plain", "rdrop", *arms)
    (rdrop,) = settings(options, "rdrop")
    for arm in arms:
        (setting,) = settings(options, arm)
        name, _, value = arm.partition("=")
        assert setting.overrides == rdrop.overrides | {name: value}
        assert setting.label == ("alpha=5" if arm == "rdrop.alpha=5" else "alpha=2")
        assert options.describe(arm) == f"rdrop with {arm}"
    assert flags.load(VIT, setting.overrides).rdrop.dropouts == (0.1, 0.3)


def test_selection_and_final_seeds_differ():
    options = read("--seeds=3", "--final_seeds=2", "--config.seed=10")
    (setting,) = settings(options, "plain")
    selection, final = (
        plan.make_trials(options, setting, final=final) for final in (False, True)
    )
    assert [t.seed for t in selection] == [10, 11, 12]
    assert [t.seed for t in final] == [13, 14]
    assert {t.overrides["eval.test"] for t in selection} == {"false"}
    assert {t.overrides["eval.test"] for t in final} == {"true"}


def test_learning_rates_are_multiples_of_the_config_s():
    options = read("--alphas=1,2,3,4,5")
    rates = [s.overrides["optimizer.lr"] for s in settings(options, "plain")]
    assert [float(r) / 3e-3 for r in rates] == pytest.approx([1, 0.5, 2, 0.25, 4])


def test_no_setting_is_tried_twice():
    options = read("--alphas=1,2,5", "--vary=optimizer.lr=4e-3,2e-3,5e-3")
    rates = [float(s.overrides["optimizer.lr"]) for s in settings(options, "plain")]
    assert rates[:3] == [4e-3, 8e-3, 1e-3]  # 2e-3 is a varied value
    assert rates[3:6] == [2e-3, 5e-4, 2.5e-4]
    assert rates[6:] == [5e-3, 2.5e-3, 1e-2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--alphas="], "--alphas: expected finite numbers, one of them above 0, fo"),
        (["--alphas=0"], "--alphas: expected finite numbers, one of them above 0, f"),
        (["--alphas=1,nan"], "--alphas: expected finite numbers, .* found 1,nan"),
        (["--alphas=1,inf"], "--alphas: expected finite numbers, .* found 1,inf"),
        (["--alphas=1,x"], "--alphas: expected numbers, found '1,x'"),
        (["--alphas=1,1"], "--alphas: expected different numbers"),
        (["--seeds=0"], "--seeds: expected from 1 to 10000, found 0"),
        (["--final_seeds=0"], "--final_seeds: expected from 1 to 10000, found 0"),
        (["--jobs=0"], "--jobs: expected at least 1, found 0"),
        (["--ablate=rdrop.every"], "--ablate: expected FIELD=VALUE, found 'rdrop."),
        (["--ablate=rdrop.evry=2"], r"rdrop.evry: no such field. Did you mean rdrop.e"),
        (["--ablate=rdrop.every=0"], "rdrop.every: expected at least 1, found 0"),
        (
            ["--ablate=eval.test=1"],
            "--ablate eval.test: expected a field that the",
        ),
        (
            ["--alphas=1,5", "--ablate=rdrop.alpha=2"],
            "--ablate rdrop.alpha: expected one alpha above 0 in --alphas, found 2",
        ),
        (
            ["--vary=model.dropout=0.1,0.2", "--ablate=model.dropout=0.3"],
            "--ablate model.dropout: found --vary model.dropout as well",
        ),
        (["--config.rdrop.num_passes=1"], "rdrop.num_passes: expected none or at le"),
        (["--arms=plane"], "found 'plane'. Did you mean plain"),
        (["--metric=accuracy:min"], "--metric: expected accuracy or accuracy:max, f"),
        (["--vary=optimizer.lr"], "--vary: expected FIELD=VALUE,VALUE"),
        (
            ["--vary=model.dropout=0.1", "--vary=model.dropout=0.2"],
            "--vary model.dropout: expected all values in one flag",
        ),
        (["--vary=model.dropout=0.1, 0.1"], "--vary model.dropout: expected differ"),
        (["--vary=optimizer.lr="], "--vary optimizer.lr: expected different values"),
        (["--vary=optimizer.lrr=1"], r"optimizer.lrr: no such field"),
        (["--vary=model.dropout=0.1,2"], r"model.dropout: expected in \[0, 1\)"),
        (["--vary=optimizer.lr=0,1"], "optimizer.lr: expected above 0, found 0"),
        (["--vary=rdrop.every=1,2"], "rdrop.every: expected a field that plain"),
        (["--vary=seed=1,2"], "--vary seed: expected a field .* Set --seeds"),
        (
            ["--config.rdrop.alpha=1"],
            "--config.rdrop.alpha: .* Set --alphas",
        ),
        (
            ["--config.optimizer.lr=1", "--vary=optimizer.lr=1,2"],
            "--vary optimizer.lr: found --config.optimizer.lr as well",
        ),
    ],
)
def test_bad_arguments_are_named(argv, message):
    with pytest.raises(InputError, match=message.replace("[0", "[0")):
        options_lib.check_options(read(*argv))
