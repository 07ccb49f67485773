"""Presets read small copies of their datasets from a hub on loopback, by name alone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import Hub, environment

datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
from PIL import Image  # noqa: E402

datasets.disable_progress_bars()

ROOT = Path(__file__).parents[2]
ROWS = 6
# Columns of GLUE's configurations, without the label.
GLUE = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
SPLITS = ("train", "validation", "test")
MNLI = ("train", "validation_matched", "validation_mismatched", "test_matched")
READ_TEXTS = """
import json
from rdrop_jax import flags
from rdrop_jax.tasks.text_classification import text_sets
def read(spec, **changed):
    config = text_sets.completed(flags.load(spec, changed))
    data, found = config.data, text_sets.find(config.data)
    names = text_sets.split_names(data)
    splits = {s: text_sets.open_split(found, data, s) for s in names}
    return {
        "classes": list(data.classes),
        "first": {s: [t.first[0], (t.second or [""])[0]] for s, t in splits.items()},
        "labels": [str(label) for label in splits["train"].labels],
        "rows": {s: len(t) for s, t in splits.items()},
    }
"""


def parquet(columns, features):
    packed = io.BytesIO()
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(packed)
    return packed.getvalue()


def card(configs):
    """A dataset card that names the files of configurations, by config and split."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - {{split: {s}, path: {config}/{s}-*}}" for s in splits]
    return "\n".join([*lines, "---", ""])


READ_PAIRS = """
import importlib, json
from rdrop_jax import flags
def read(spec, module, **changed):
    config = flags.load(spec, changed)
    module = importlib.import_module(f"rdrop_jax.tasks.{module}")
    config = module.check_data(config)
    found = module.find(config.data)
    read = {s: split() for s, split in found.splits.items()}
    return {s: [list(pairs.source), list(pairs.target)] for s, pairs in read.items()}
"""
READ_LINES = """
import json
from rdrop_jax import flags
from rdrop_jax.tasks.language_modeling import running_text
def read(spec):
    config = running_text.check_data(flags.load(spec, {}))
    found = running_text.corpus(config.data)
    text = {s: found.vocabulary.decode(x.ids.tolist()) for s, x in found.splits.items()}
    return {"words": len(found.vocabulary), "text": text}
"""


READ_IMAGES = """
import json
import numpy as np
from rdrop_jax import flags, tasks
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.image_classification.decode import decode
def read(spec, **changed):
    config = tasks.check_data(flags.load(spec, changed))
    found = image_sets.find(config.data)
    splits = {s: image_sets.open_split(found, config.data, s) for s in found.splits}
    first = np.asarray(decode(splits["test"][1]["image"], 3)).tolist()
    labels = {s: [int(x["label"]) for x in rows] for s, rows in splits.items()}
    return {"classes": list(config.data.classes), "labels": labels, "first": first}
"""


def glue(name, split):
    classes = {"stsb": 0, "mnli": 3}.get(name, 2)
    value = datasets.Value("string")
    columns = {c: [f"{split} {c} {i}" for i in range(ROWS)] for c in GLUE[name]}
    features = dict.fromkeys(columns, value) | {"label": datasets.Value("float32")}
    if classes:
        names = [f"class {i}" for i in range(classes)]
        features["label"] = datasets.ClassLabel(names=names)
    known = [i % classes if classes else i / 2 for i in range(ROWS)]
    columns["label"] = [-1] * ROWS if split.startswith("test") else known
    return parquet(columns, features)


def found(files, repo, program, calls, folder):
    """Results of calls of a function ``read`` in one process that uses the hub."""
    hub = Hub()
    hub.add(repo, files, kind="datasets")
    lines = [f"print(json.dumps(read({', '.join(call)})))" for call in calls]
    with hub.serve():
        done = subprocess.run(
            [sys.executable, "-c", "\n".join([program, *lines])],
            env=os.environ | environment(hub, folder) | {"HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(x) for x in done.stdout.splitlines() if x[:1] in "{["]


@pytest.fixture(scope="module")
def glue_tasks(tmp_path_factory):
    splits = {name: MNLI if name == "mnli" else SPLITS for name in GLUE}
    files = {
        f"{name}/{split}-00000-of-00001.parquet": glue(name, split)
        for name, each in splits.items()
        for split in each
    }
    files["README.md"] = card(splits)
    calls = [[f"'configs/glue.py:{name}_bert_base'"] for name in GLUE]
    held = "**{'data.validation': '2', 'data.files.test': 'validation'}"
    calls.append(["'configs/glue.py:rte_bert_base'", held])
    folder = tmp_path_factory.mktemp("glue")
    results = found(files, "nyu-mll/glue", READ_TEXTS, calls, folder)
    return dict(zip((*GLUE, "held out"), results, strict=True))


@pytest.mark.parametrize("name", GLUE)
def test_glue(glue_tasks, name):
    result = glue_tasks[name]
    count = {"stsb": 0, "mnli": 3}.get(name, 2)
    names = [f"class {i}" for i in range(count)]
    assert result["classes"] == names
    known = names or [str(i / 2) for i in range(ROWS)]
    assert result["labels"] == [known[i % len(known)] for i in range(ROWS)]
    splits = {s: s for s in SPLITS[:2]}
    if name == "mnli":
        splits |= dict(zip(SPLITS, MNLI[:3], strict=True))
    columns = (*GLUE[name], "")[:2]
    assert result["first"] == {
        ours: [f"{theirs} {c} 0" if c else "" for c in columns]
        for ours, theirs in splits.items()
    }


def test_glue_with_held_out_rows(glue_tasks):
    result = glue_tasks["held out"]
    assert result["rows"] == {"train": ROWS - 2, "validation": 2, "test": ROWS}
    assert result["first"]["test"][0] == "validation sentence1 0"


def test_cnn_dailymail(tmp_path):
    text = datasets.Value("string")
    features = dict.fromkeys(("article", "highlights", "id"), text)
    files = {"README.md": card({"3.0.0": SPLITS})}
    for split in SPLITS:
        columns = {
            "article": [f"{split} article", "another\nline", ""],
            "highlights": ["First .\nSecond .", "One .", "Nothing ."],
            "id": ["0", "1", "2"],
        }
        files[f"3.0.0/{split}-00000-of-00001.parquet"] = parquet(columns, features)
    call = ["'configs/summarization.py:cnn_dailymail'", "'summarization.summary_sets'"]
    (splits,) = found(files, "abisee/cnn_dailymail", READ_PAIRS, [call], tmp_path)
    assert splits["train"] == [
        ["train article", "another line"],
        ["First . Second .", "One ."],
    ]
    assert [len(splits[s][0]) for s in SPLITS[1:]] == [3, 3]


def test_wikitext103(tmp_path):
    files = {"README.md": card({"wikitext-103-v1": SPLITS})}
    for split in SPLITS:
        columns = {"text": ["", " = A title = \n", f" the <unk> of {split} \n"]}
        packed = parquet(columns, {"text": datasets.Value("string")})
        files[f"wikitext-103-v1/{split}-00000-of-00001.parquet"] = packed
    call = ["'configs/lm.py:wikitext103'"]
    (result,) = found(files, "Salesforce/wikitext", READ_LINES, [call], tmp_path)
    assert result["text"]["train"] == "\n= A title =\nthe <unk> of train\n"
    assert result["text"]["test"] == "\n= A title =\nthe <unk> of <unk>\n"


def test_cifar100(tmp_path):
    names = {"fine_label": 100, "coarse_label": 20}
    features = {"img": datasets.Image()} | {
        c: datasets.ClassLabel(names=[f"{c} {i}" for i in range(n)])
        for c, n in names.items()
    }
    files = {"README.md": card({"cifar100": ("train", "test")})}
    pixels = np.random.default_rng(0).integers(0, 255, (ROWS, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        columns = {
            "img": [Image.fromarray(each) for each in pixels],
            "fine_label": [99 - i for i in range(ROWS)],
            "coarse_label": list(range(ROWS)),
        }
        path = f"cifar100/{split}-00000-of-00001.parquet"
        files[path] = parquet(columns, features)
    calls = [
        [f"'configs/vit.py:{preset}'", "**{'data.validation': '2'}"]
        for preset in ("cifar100", "cifar100_scratch")
    ]
    for result in found(files, "uoft-cs/cifar100", READ_IMAGES, calls, tmp_path):
        assert result["classes"] == [f"fine_label {i}" for i in range(100)]
        assert result["labels"]["test"] == [99 - i for i in range(ROWS)]
        assert len(result["labels"]["train"]) == ROWS - 2
        assert result["first"] == pixels[1].tolist()


def test_wmt14(tmp_path):
    pairs = {"de-en": ("de", "en"), "fr-en": ("fr", "en")}
    files = {"README.md": card(dict.fromkeys(pairs, SPLITS))}
    for config, languages in pairs.items():
        features = {"translation": datasets.Translation(languages=languages)}
        for split in SPLITS:
            texts = [{x: f"{split} {x} {i}." for x in languages} for i in range(3)]
            packed = parquet({"translation": texts}, features)
            files[f"{config}/{split}-00000-of-00001.parquet"] = packed
    calls = [
        [f"'configs/nmt.py:wmt14_en_{x}'", "'translation.translation_sets'"]
        for x in ("de", "fr")
    ]
    results = found(files, "wmt/wmt14", READ_PAIRS, calls, tmp_path)
    for result, language in zip(results, ("de", "fr"), strict=True):
        for split in SPLITS:
            source, target = result[split]
            assert source == [f"{split} en {i}." for i in range(3)]
            assert target == [f"{split} {language} {i}." for i in range(3)]
