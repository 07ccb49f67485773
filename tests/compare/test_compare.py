"""Comparisons of tiny runs, from the first run to the page."""

import json
import re
import shutil
import signal
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import programs
from helpers.pictures import noise, write_folder
from helpers.tiny import TINY, VIT, train

from rdrop_jax import evaluate
from rdrop_jax.cli.run import open_run
from rdrop_jax.compare import (
    diagnostics,
    plan,
    render,
    results,
    runs,
    stored_reports,
    worker,
)
from rdrop_jax.compare import program as compare
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.training import workdir as workdir_lib

ARGV = ["--config", VIT, "--config.total_steps=2", "--config.eval.every=1"]
ARGV += ["--alphas=0,1,5", "--seeds=2", "--final_seeds=6", "--metric=accuracy:max"]
PROBE = {
    "steps_per_epoch": [10.0],
    "scores": ["accuracy", "loss"],
    "splits": ["train", "validation", "test"],
    "data": {"digits": "00"},
    "device": "1 x cpu",
}
EXAMPLES = 200
GAIN = {"plain": 0.0, "rdrop": 0.05, "equal_compute": 0.01}


def write_run(trial, workdir, gain):
    """Write the files of a run at once; ``gain`` is the effect of each arm."""
    s = trial.setting
    rng = np.random.default_rng([trial.seed, *s.arm.encode(), s.index, trial.final])
    score = 0.7 + gain[s.arm] + 0.01 * trial.seed - 0.02 * s.index
    hits = (rng.permutation(EXAMPLES) < score * EXAMPLES + rng.normal()) * 1.0
    scores = {"accuracy": float(np.mean(hits)), "loss": 1 - score, "examples": EXAMPLES}
    best = 1 if trial.seed == 7 else 2
    result = {"step": 2, "checkpoint_step": best, "validation": scores, "seconds": 9.5}
    speed = 5.0 if s.arm == "rdrop" else 10.0
    records = [
        {"step": step, "kind": kind, **values}
        for step in (1, 2)
        for kind, values in (
            ("train", {"ce": 1.0, "kl": 0.1 * step, "steps_per_second": speed}),
            ("validation", scores),
        )
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (workdir / "metrics.jsonl").write_text(lines)
    if trial.final:
        result["test"] = scores
        found = {"train": scores, "agreement": 0.9, "sub_model_kl": 0.01}
        (workdir / "diagnostics.json").write_text(json.dumps(found))
        np.savez(workdir / "test_examples.npz", accuracy=hits)
    (workdir / "result.json").write_text(json.dumps(result))


class FakeRuns:
    """Runs that end at once; those named in ``broken`` fail."""

    def __init__(self, broken=(), gain=None):
        self.started, self.broken, self.gain = [], tuple(broken), gain or GAIN

    def __call__(self, options, trial, workdir):
        self.started.append(trial.name)
        workdir.mkdir(parents=True, exist_ok=True)
        if trial.name.startswith(self.broken):
            with (workdir / "output.log").open("a") as file:
                file.write("step 1\nerror: it broke\n")
        else:
            write_run(trial, workdir, self.gain)
        return self

    def poll(self):
        return 0

    def kill(self):
        pass


class LocalRuns(FakeRuns):
    """Runs executed in this process."""

    def __call__(self, options, trial, workdir):
        job = {"config": options.config, "overrides": trial.overrides}
        worker.train_and_diagnose(job | {"workdir": str(workdir), "final": trial.final})
        return self


def run(workdir, argv=ARGV, start=None):
    options, _, _ = compare.read_options([*argv, "--workdir", str(workdir)])
    start = start or FakeRuns()
    return compare.compare(options, workdir, command="it", start=start)


@pytest.fixture(scope="module", autouse=True)
def probe_here():
    """Probe without a separate process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "probe", lambda options: PROBE)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared") / "cmp"
    return workdir, run(workdir, [*ARGV, "--arms=equal_compute"])


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory):
    """One trained run with and one without R-Drop."""
    workdir = tmp_path_factory.mktemp("pair") / "cmp"
    fields = TINY | {"total_steps": "2", "eval.every": "1", "data.labelled": "64"}
    del fields["log.every"], fields["checkpoint.every"]
    argv = ["--config", VIT, *(f"--config.{k}={v}" for k, v in fields.items())]
    return workdir, run(workdir, [*argv, "--seeds=1"], LocalRuns())


def copy(compared, to):
    shutil.copytree(compared[0], to)
    return to


def settled(report):
    return {name: part for name, part in report.items() if name != "timings"}


def arm_of(report, name):
    return next(arm for arm in report["arms"] if arm["arm"] == name)


def test_the_content_of_the_report(compared):
    workdir, report = compared
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["verdict"]["word"] == "helps"
    assert "R-Drop helps here: +0.0" in report["verdict"]["sentence"]
    assert [arm["arm"] for arm in report["arms"]] == ["plain", "rdrop", "equal_compute"]
    assert all(arm["seeds"] == [2, 3, 4, 5, 6, 7] for arm in report["arms"])
    plain, rdrop, more = report["arms"]
    assert plain["difference"] is None
    assert plain["diagnostics"]["pass_kl"] is None
    assert rdrop["diagnostics"] == {
        "pass_kl": pytest.approx(0.2),
        "gap": 0.0,
        "ece": None,
        "agreement": pytest.approx(0.9),
        "sub_model_kl": pytest.approx(0.01),
    }
    a, b = (np.array(arm["test"]["accuracy"]["values"]) for arm in (rdrop, plain))
    assert rdrop["difference"]["values"] == pytest.approx(a - b)
    assert rdrop["difference"]["p"] == rdrop["difference"]["smallest_p"] == 2 / 64
    low, high = rdrop["difference"]["examples"]
    assert low < rdrop["difference"]["mean"] < high
    assert set(report["curves"]) == {
        "validation_accuracy",
        "validation_loss",
        "pass_kl",
    }
    assert set(report["curves"]["pass_kl"]) == {"rdrop"}
    assert plain["checkpoints"] == [2, 2, 2, 2, 2, 1]
    assert render.diagnostics_table(report)[-1] == {
        "measure": "checkpoint saved at, % of the steps (minimum to maximum)",
        "plain": "92 (50 to 100)",
        "rdrop": "92 (50 to 100)",
        "equal_compute": "46 (25 to 50)",
    }
    assert report["timings"]["rdrop"]["update_seconds"] == pytest.approx(0.2)
    assert report["timings"]["rdrop"]["update_against_plain"] == pytest.approx(2)
    assert report["protocol"]["cost_ratio"] == 2.0
    assert (plain["updates"], rdrop["updates"], more["updates"]) == (2, 2, 4)
    assert report["config"]["rdrop.objective_scale"] == "mean"
    assert report["config"]["total_steps"] == 2
    assert "seed" not in report["config"]
    assert report["differences"]["rdrop.alpha"] == {
        "plain": "0.0",
        "rdrop": "1.0",
        "equal_compute": "0.0",
    }


@pytest.mark.parametrize(
    ("gain", "seeds", "word"),
    [(-0.1, 6, "hurts"), (0.0, 6, "inconclusive"), (0.1, 5, "")],
)
def test_the_verdict_follows_the_runs(tmp_path, gain, seeds, word):
    argv = [*ARGV, f"--final_seeds={seeds}"]
    start = FakeRuns(gain=GAIN | {"rdrop": gain})
    report = run(tmp_path / "cmp", argv, start)
    assert report["verdict"]["word"] == word
    text = (tmp_path / "cmp" / "report.html").read_text()
    assert report["verdict"]["sentence"] in text
    assert ("No verdict from fewer than 6 seeds" in text) == (word == "")


def test_a_window_without_a_step_of_rdrop_has_no_kl(compared, tmp_path):
    workdir = copy(compared, tmp_path / "cmp")
    for path in (workdir / "final").glob("rdrop-0/*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"kl": 0.2', '"kl": 0.0'))
    report = run(workdir, [*ARGV, "--arms=equal_compute"])
    assert arm_of(report, "rdrop")["diagnostics"]["pass_kl"] == pytest.approx(0.1)


def test_ablations_are_separate_arms(tmp_path):
    arm = "rdrop.dropouts=(0.1,0.3)"
    start = FakeRuns(gain=GAIN | {arm: 0.1})
    argv = [*ARGV, "--config.rdrop.num_passes=2", f"--ablate={arm}"]
    report = run(tmp_path, argv, start)
    found = arm_of(report, arm)
    assert found["what"] == f"rdrop with {arm}"
    assert found["difference"]["mean"] > arm_of(report, "rdrop")["difference"]["mean"]
    assert f"selection/{arm}-0/seed0" in start.started
    assert report["verdict"]["word"] == "helps"  # of rdrop


def test_a_task_without_scores_per_example_has_no_such_interval(compared, tmp_path):
    workdir = copy(compared, tmp_path / "cmp")
    for path in workdir.rglob("test_examples.npz"):
        path.unlink()
    report = run(workdir, [*ARGV, "--arms=equal_compute"])
    assert arm_of(report, "rdrop")["difference"]["examples"] is None
    assert "no common scores per example" in (workdir / "report.html").read_text()


def test_only_the_same_rows_are_paired():
    labels, hits = np.arange(3), {"accuracy": np.ones(3)}
    labelled, reversed_ = hits | {"label": labels}, hits | {"label": labels[::-1]}
    setting, scored = plan.Setting("plain", 0, {}, {}), {"test": {"accuracy": 1.0}}
    trials = [plan.Trial(setting, seed, final=True) for seed in range(2)]
    for pair, wanted in (
        ([hits, hits], True),
        ([labelled, labelled], True),
        ([hits, labelled], False),
        ([labelled, reversed_], False),
        ([hits, {"accuracy": np.ones(2)}], False),
    ):
        assert results._same_rows(pair, "accuracy") == wanted
        arms = [
            [results.FinishedRun(trial, scored, {}, [], x) for trial in trials]
            for x in pair
        ]
        found = results.difference(*arms, "accuracy")
        assert (found["examples"] is not None) == wanted


def test_the_best_setting_on_validation_is_selected(compared):
    for arm in ("plain", "rdrop"):
        rows = [r for r in compared[1]["exploratory"] if r["arm"] == arm]
        best = min(rows, key=lambda row: row["validation"]["mean"])
        assert [row["picked"] for row in rows] == [row is best for row in rows]


def test_runs_are_ordinary_workdirs(trained_pair):
    for arm in trained_pair[1]["arms"]:
        assert arm["seeds"] == [1]
        assert 0 <= arm["diagnostics"]["agreement"] <= 1
        assert arm["diagnostics"]["sub_model_kl"] > 0
        assert isinstance(arm["diagnostics"]["gap"], float)
    workdir = trained_pair[0] / "final" / "rdrop-0" / "seed1"
    result = json.loads((workdir / "result.json").read_text())
    scores = evaluate.evaluate(workdir, "test", "best")
    assert scores.pop("step") == result["checkpoint_step"]
    assert scores == result["test"]
    with np.load(workdir / "test_examples.npz") as examples:
        assert set(examples) == {"accuracy", "loss", "label"}
        for name in ("accuracy", "loss"):
            assert examples[name].shape == (360,)
            assert np.mean(examples[name]) == pytest.approx(scores[name], abs=1e-5)


def test_the_labelled_subset_is_the_same_for_all_arms(trained_pair):
    plain, rdrop = (
        open_run(trained_pair[0] / "final" / f"{arm}-0" / "seed1").task.train_data()
        for arm in ("plain", "rdrop")
    )
    assert plain.steps_per_epoch == 2
    assert plain[5]["image"].tolist() == rdrop[5]["image"].tolist()


def test_selection_runs_read_no_test_data(compared, tmp_path):
    selection = (compared[0] / "selection").rglob("result.json")
    assert len(list(selection)) == 12
    result = train(tmp_path, eval__test=False)
    assert "test" not in result
    assert "validation" in result


def test_the_probe_of_the_worker():
    variants = [{"data.labelled": "64"}, {"data.labelled": "64", "batch_size": "16"}]
    found = worker.probe({"config": VIT, "probe": variants})
    assert found["steps_per_epoch"] == [2.0, 4.0]
    assert {"accuracy", "loss"} <= set(found["scores"])
    assert set(found) == set(PROBE)


def test_the_probe_reads_the_dataset_and_checks_weights(tmp_path):
    write_folder(tmp_path, noise(20), np.arange(20) % 2, ("ant", "bee"))
    fields = TINY | {"data.dir": str(tmp_path), "data.image_size": "8"}
    job = {"config": f"{VIT}:folder", "probe": [fields | {"init_from": ""}]}
    assert worker.probe(job)["steps_per_epoch"] == [16 / 64]
    lost = fields | {"init_from": "lost.npz"}
    with pytest.raises(InputError, match=r"init_from: .* found nothing at lost\.npz"):
        worker.probe(job | {"probe": [lost]})


def test_the_last_error_of_a_process_has_all_its_lines():
    output = "a warning\nerror: not prepared\n  do this\nand that\n"
    assert runs.last_error(output) == "not prepared\n  do this\nand that"
    assert runs.last_error("Traceback\nKeyError: 'x'\n") == "KeyError: 'x'"
    assert runs.last_error("") == ""


def test_two_passes_never_cost_less_than_one(compared):
    options, _, _ = compare.read_options([*ARGV, "--workdir", str(compared[0])])
    plain, rdrop = (
        results.read_run(plan.make_trials(options, setting, final=True)[0], compared[0])
        for setting in (
            plan.make_settings(options, [10.0], arm)[0] for arm in ("plain", "rdrop")
        )
    )
    assert results.cost_ratio([plain], [rdrop]) == 2.0
    assert results.cost_ratio([rdrop], [plain]) == 1.0
    assert np.isnan(results.cost_ratio([plain], []))


def test_a_second_start_executes_only_missing_runs(compared, tmp_path):
    workdir = copy(compared, tmp_path / "cmp")
    gone = [workdir / "selection/plain-1/seed1", workdir / "final/rdrop-0/seed3"]
    for path in gone:
        shutil.rmtree(path)
    (workdir / "final/rdrop-0/seed4/diagnostics.json").unlink()
    (workdir / "report.json").unlink()
    start = FakeRuns()
    report = run(workdir, [*ARGV, "--arms=equal_compute"], start)
    assert start.started == [
        *(str(path.relative_to(workdir)) for path in gone),
        "final/rdrop-0/seed4",
    ]
    assert settled(report) == settled(compared[1])


def test_a_failed_run_is_listed_and_stops_no_other_run(tmp_path):
    broken = ["selection/plain-0/seed1", "final/rdrop-0/seed2"]
    report = run(tmp_path / "cmp", start=FakeRuns(broken))
    assert report["failed"] == dict.fromkeys(broken, "it broke")
    assert arm_of(report, "rdrop")["difference"]["seeds"] == [3, 4, 5, 6, 7]
    assert report["verdict"]["word"] == ""
    text = (tmp_path / "cmp" / "report.html").read_text()
    assert "final/rdrop-0/seed2: it broke" in text
    assert "2 runs failed" in text
    # A setting with a failed run is not selected.
    plain = [r for r in report["exploratory"] if r["arm"] == "plain"]
    assert [(r["seeds"], r["picked"]) for r in plain] == [([0], False), ([0, 1], True)]
    mended = run(tmp_path / "cmp")
    assert mended["failed"] == {}
    assert mended["verdict"]["word"] == "helps"


def test_the_reason_is_that_of_the_last_start(tmp_path):
    class Killed(FakeRuns):
        def __call__(self, options, trial, workdir):
            if trial.name.startswith(self.broken):
                with (workdir / "output.log").open("a") as file:
                    file.write("step 1\n")
                return self
            return super().__call__(options, trial, workdir)

        def poll(self):
            return -9

    broken = ["final/rdrop-0/seed2"]
    run(tmp_path / "cmp", start=FakeRuns(broken))
    report = run(tmp_path / "cmp", start=Killed(broken))
    assert report["failed"] == {broken[0]: "killed by signal 9 after: step 1"}


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_a_failed_run(tmp_path, score):
    class Diverged(FakeRuns):
        def __call__(self, options, trial, workdir):
            super().__call__(options, trial, workdir)
            if trial.name == "final/plain-0/seed2":
                result = json.loads((workdir / "result.json").read_text())
                result["test"]["accuracy"] = score
                (workdir / "result.json").write_text(json.dumps(result))
            return self

    argv = [*ARGV, "--alphas=1", "--seeds=2", "--final_seeds=7"]
    report = run(tmp_path / "cmp", argv, Diverged())
    name, reason = next(iter(report["failed"].items()))
    assert name == "final/plain-0/seed2"
    assert reason == f"test accuracy: expected a finite score, found {score}"
    assert arm_of(report, "rdrop")["difference"]["seeds"] == [3, 4, 5, 6, 7, 8]
    assert report["verdict"]["word"] == "helps"


def test_a_setting_that_diverges_is_listed_and_not_selected(tmp_path):
    class Diverged(FakeRuns):
        def __call__(self, options, trial, workdir):
            super().__call__(options, trial, workdir)
            if trial.name == "selection/plain-0/seed1":
                result = json.loads((workdir / "result.json").read_text())
                result["validation"]["loss"] = float("nan")
                (workdir / "result.json").write_text(json.dumps(result))
            return self

    report = run(tmp_path / "cmp", start=Diverged())
    reason = "validation loss: expected a finite score, found nan"
    assert report["failed"] == {"selection/plain-0/seed1": reason}
    plain = [r for r in report["exploratory"] if r["arm"] == "plain"]
    assert [row["picked"] for row in plain] == [False, True]


def test_runs_of_one_step_have_no_time(tmp_path):
    class Untimed(FakeRuns):
        def __call__(self, options, trial, workdir):
            super().__call__(options, trial, workdir)
            path = workdir / "metrics.jsonl"
            path.write_text(path.read_text().replace("steps_per_second", "x"))
            return self

    report = run(tmp_path / "cmp", start=Untimed())
    assert report["timings"]["rdrop"]["update_seconds"] is None
    assert "over time" not in (tmp_path / "cmp" / "report.html").read_text()
    assert " s</text>" not in stored_reports.forest_plot(tmp_path / "cmp")
    run(tmp_path / "timed")
    assert " s</text>" in stored_reports.forest_plot(tmp_path / "timed")


def test_old_names_of_fields(tmp_path):
    argv = [*ARGV, "--config.log.tensorboard=false", "--alphas=1"]
    report = run(tmp_path / "cmp", argv)
    assert report["config"]["log.trackers"] == []
    assert run(tmp_path / "cmp", argv) == report


def test_a_comparison_without_a_pair_of_runs_fails(tmp_path):
    with pytest.raises(TrainingError, match="no seed was finished both with and"):
        run(tmp_path / "a", [*ARGV, "--arms=equal_compute"], FakeRuns(["final/plain"]))
    assert "equal_compute: no finished runs" in (tmp_path / "a/report.html").read_text()
    with pytest.raises(TrainingError, match="no seed was finished both with and"):
        run(tmp_path / "b", start=FakeRuns(["selection/"]))
    assert "<svg" not in (tmp_path / "b" / "report.html").read_text()


def test_folders_of_other_comparisons_are_refused(compared, tmp_path):
    workdir = copy(compared, tmp_path / "cmp")
    with pytest.raises(InputError, match=r"another comparison.*\n.*\n  options\.seeds"):
        run(workdir, [*ARGV, "--seeds=3"])
    with pytest.raises(InputError, match="expected a new folder"):
        run(workdir / "final" / "plain-0" / "seed2")
    (workdir / "comparison.json").write_text("[]")
    with pytest.raises(InputError, match="use another workdir"):
        run(workdir)


def test_a_metric_that_no_arm_has_is_refused(tmp_path):
    with pytest.raises(InputError, match="--metric: expected one that all arms have"):
        run(tmp_path / "cmp", [*ARGV, "--metric=bleu:max"])
    with pytest.raises(InputError, match=r"eval\.metric: expected one that all arms"):
        run(tmp_path / "cmp", [*ARGV, "--config.eval.metric=bleu"])


def test_a_task_without_test_data_is_refused(tmp_path, monkeypatch):
    probe = PROBE | {"splits": ["validation"]}
    monkeypatch.setattr(runs, "probe", lambda options: probe)
    start = FakeRuns()
    with pytest.raises(
        InputError, match=r"^data: expected test data .*validation\. Set"
    ):
        run(tmp_path / "cmp", start=start)
    assert not start.started


def test_fields_that_all_arms_share_are_no_difference(compared):
    fields = compared[1]["differences"]
    assert "rdrop.dropouts" not in fields
    assert fields["rdrop.alpha"] == {
        "plain": "0.0",
        "rdrop": "1.0",
        "equal_compute": "0.0",
    }


class Reader(HTMLParser):
    """Collect the resources that a page loads, and check that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.loads += [
            value
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_fits_phone_and_paper(compared):
    text = (compared[0] / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loads == ["data:,"]
    assert "//" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert "url(" not in text
    assert "@import" not in text
    metas = [attrs for tag, attrs in reader.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in (
        metas
    )
    assert "@media screen and (max-width" in text
    assert "@media print" in text
    for words in ("difference in test accuracy", "steps", "nats", "seconds of"):
        assert words in text
    assert text.count("<svg") == 5
    assert "nan" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)


def test_text_of_the_report_is_escaped(compared):
    report = json.loads(json.dumps(compared[1]))
    report["failed"] = {"final/x": "<script>alert(1)</script>"}
    assert "<script" not in render.make_page(report)


def test_the_markdown_table_is_regular(compared):
    lines = (compared[0] / "report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    arms, controls = rows[:5], rows[5:]
    assert len({line.count("|") for line in arms}) == 1
    header, _, row = controls
    assert header.count("|") == row.count("|")
    assert row.startswith("| equal_compute |")


def test_agreement_of_sub_models():
    p = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]])
    with np.errstate(divide="ignore"):
        agreement, kl = diagnostics.compare_sub_models(np.log(p))
    assert agreement == 0.5
    both = [np.sum(a * np.log(a / b)) for a, b in ((p[0], p[1]), (p[1], p[0]))]
    assert kl == pytest.approx(sum(both) / 2 / 2)
    same = np.log(np.array([[[1.0, 1e-300]], [[1.0, 1e-300]]]))
    same[..., 1] = -np.inf
    assert diagnostics.compare_sub_models(same) == (1.0, 0.0)


@pytest.mark.slow
def test_a_comparison_resumes_after_a_kill_with_the_same_report(tmp_path):
    """The program is killed by SIGKILL, which ends its runs as well."""
    argv = ["--config", "configs/vit.py", *programs.TINY, "--alphas=1,5", "--seeds=2"]
    argv = [a for a in argv if "log.every" not in a and "checkpoint.every" not in a]
    argv += ["--config.data.labelled=200", "--jobs=2"]
    code, out, err = programs.run("compare", *argv, "--workdir", tmp_path / "whole")
    assert code == 0, err
    assert "[12/12]" in out

    killed = ["compare", *argv, "--workdir", tmp_path / "cut"]
    process = programs.start(*killed, stdin=None)
    for line in process.stdout:
        if line.startswith("[3/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = [path.parent for path in (tmp_path / "cut").rglob("seed*/lock")]
    assert len(begun) < 12
    deadline = time.monotonic() + 30
    while not all(map(free, begun)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(map(free, begun))
    code, out, err = programs.run(*killed)
    assert code == 0, err
    whole, cut = (
        settled(json.loads((tmp_path / name / "report.json").read_text()))
        for name in ("whole", "cut")
    )
    (alone,) = (tmp_path / "whole" / "final").glob("plain-*/seed2")
    command = json.loads((alone / "result.json").read_text())["run"]["command"]
    assert command[:4] == ["train.py", "--config", "configs/vit.py", "--workdir"]
    assert "--config.seed=2" in command
    assert cut.pop("command") != whole.pop("command")
    assert cut == whole


def free(folder):
    try:
        with workdir_lib.locked(folder):
            return True
    except InputError:
        return False
