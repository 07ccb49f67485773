"""Commits of data and weights of the Hub that all runs of a comparison use."""

import json
import shutil

import pytest
from helpers import texts
from helpers.hub import forget, go_offline

from rdrop_jax import flags
from rdrop_jax.compare import program as compare
from rdrop_jax.compare import runs, worker
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.files import hub as hub_names

pytest.importorskip("datasets", reason="needs the extra [hub]")
from helpers.repositories import FILMS, film_rows, films, tiny_bert

DATA, WEIGHTS = f"hf:{FILMS}/pairs", "hf:org/tiny-bert"
FIELDS = {n: x for n, x in texts.TINY.items() if not n.startswith(("model.", "log."))}
FIELDS |= {"data.name": DATA, "init_from": WEIGHTS, "data.columns.text_b": "text_b"}
FIELDS |= {"total_steps": 2, "eval.every": 1}
ARGV = ["--config", f"{texts.GLUE}:files", "--seeds=1"]
ARGV += [f"--config.{n}={x}" for n, x in FIELDS.items() if n != "checkpoint.every"]
PROBE = {
    "steps_per_epoch": [10.0],
    "scores": ["accuracy"],
    "splits": ["test"],
    "data": {},
    "device": "",
}


def push(hub, rows=48):
    """New commits of the data and of the weights on the main branch."""
    changed = films() | {"pairs/train-00000.parquet": film_rows(rows, 0)}
    data = hub.add(FILMS, changed, kind="datasets")
    return data, hub.add("org/tiny-bert", tiny_bert())


class Runs:
    """Runs that note the names of their data and weights, and then fail."""

    def __init__(self, before=lambda: None):
        self.before, self.used = before, []

    def __call__(self, options, trial, workdir):
        self.before()
        config = flags.load(options.config, trial.overrides)
        self.used.append((config.data.name, config.init_from))
        return self

    def poll(self):
        return 0

    def kill(self):
        pass


def run(workdir, start, argv=ARGV):
    forget()
    options, _, _ = compare.read_options([*argv, "--workdir", str(workdir)])
    return compare.compare(options, workdir, start=start)


def test_a_push_between_two_runs_changes_no_arm(hub, monkeypatch, tmp_path):
    probed = []
    monkeypatch.setattr(
        runs, "probe", lambda options: probed.append(options.pins) or PROBE
    )
    data, weights = push(hub)
    first = f"{DATA}@{data}", f"{WEIGHTS}@{weights}"
    start = Runs(before=lambda: push(hub, 40))
    with pytest.raises(TrainingError, match="no seed was finished"):
        run(tmp_path / "cmp", start)
    assert start.used == [first, first]
    pins = dict(zip((f"data.name={DATA}", f"init_from={WEIGHTS}"), first, strict=True))
    assert probed == [pins]
    stored = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert stored["pins"] == pins
    assert stored["base"]["data.name"] == DATA

    go_offline(monkeypatch)
    asked, again = len(hub.requests), Runs()
    with pytest.raises(TrainingError, match="no seed was finished"):
        run(tmp_path / "cmp", again)
    assert again.used == [first, first]
    with pytest.raises(InputError, match="contains another comparison"):
        run(tmp_path / "cmp", again, [*ARGV, "--alphas=2"])
    assert len(hub.requests) == asked


def test_each_name_of_an_arm_has_its_commit(hub, tmp_path):
    data, weights = push(hub)
    other = hub.add("org/other", tiny_bert())
    at = f"{WEIGHTS}@{weights}"
    argv = [*ARGV, "--ablate=init_from=hf:org/other", f"--ablate=init_from={at}"]
    options, _, _ = compare.read_options([*argv, "--workdir", str(tmp_path)])
    found = compare.find_pins(options)
    assert found == {
        f"data.name={DATA}": f"{DATA}@{data}",
        f"init_from={WEIGHTS}": at,
        "init_from=hf:org/other": f"hf:org/other@{other}",
        f"init_from={at}": at,
    }
    assert hub_names.pinned("data.name", "hf:a/b@v1", "c0") == "hf:a/b@c0"


def test_an_unknown_name_is_refused_before_the_workdir_is_made(hub, tmp_path):
    with pytest.raises(InputError, match=r"^data.name: hf:org/films/pairs: .*Correct"):
        run(tmp_path / "cmp", Runs())
    assert not (tmp_path / "cmp").exists()


@pytest.mark.slow
def test_runs_with_pins_train_and_resume_offline(hub, monkeypatch, tmp_path):
    """The same, with runs that train."""

    class LocalRuns(Runs):
        def __call__(self, options, trial, workdir):
            job = {"config": options.config, "overrides": trial.overrides}
            job |= {"workdir": str(workdir), "final": trial.final}
            forget()
            worker.train_and_diagnose(job)
            self.before()
            return self

    monkeypatch.setattr(runs, "probe", probe_here)
    data, weights = push(hub)
    report = run(tmp_path / "cmp", LocalRuns(before=lambda: push(hub, 40)))
    for arm in ("plain", "rdrop"):
        path = tmp_path / f"cmp/final/{arm}-0/seed1/result.json"
        result = json.loads(path.read_text())
        assert result["data"][f"{DATA}@{data}"] == data
        assert result["init"]["commit"] == weights
    shutil.rmtree(path.parent)
    go_offline(monkeypatch)
    again = run(tmp_path / "cmp", LocalRuns())
    del report["timings"], again["timings"]
    assert again == report


def probe_here(options):
    variants = [options.pinned(options.overrides | v) for v in options.variants]
    return worker.probe({"config": options.config, "probe": variants})
