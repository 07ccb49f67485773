"""Datasets by name from a hub on loopback, through the real library."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hub import Hub, environment
from helpers.texts import GLUE, TINY, rows
from safetensors.numpy import save

from rdrop_jax.data import hub as data_hub
from rdrop_jax.data import subwords
from rdrop_jax.errors import InputError
from rdrop_jax.models.encoder import Classifier, Encoder
from rdrop_jax.models.vit import Size
from rdrop_jax.pretrained.initialize import flatten
from rdrop_jax.tasks.text_classification import bert, task

datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
import pyarrow as pa  # noqa: E402
from PIL import Image  # noqa: E402
from pyarrow import parquet  # noqa: E402

ROOT = Path(__file__).parents[2]
REPO = "org/films"
CARD = """---
dataset_info:
- config_name: pairs
  features:
  - name: text
    dtype: string
  - name: text_b
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': good
          '1': bad
configs:
- config_name: pairs
  data_files:
  - {split: train, path: pairs/train-*}
  - {split: validation, path: pairs/validation-*}
  - {split: test, path: pairs/test-*}
- config_name: plain
  data_files:
  - {split: train, path: plain/train.jsonl}
---
# films
"""


def table(count, seed, known=True):
    found = rows(count, seed)
    for row in found:
        row["label"] = ["good", "bad"].index(row["label"]) if known else -1
    packed = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(found), packed)
    return packed.getvalue()


def repository(known=True):
    return {
        "README.md": CARD,
        "pairs/train-00000.parquet": table(48, 0),
        "pairs/validation-00000.parquet": table(16, 1),
        "pairs/test-00000.parquet": table(16, 2, known),
        "plain/train.jsonl": "".join(json.dumps(r) + "\n" for r in rows(24, 3)),
    }


@pytest.fixture
def hub():
    with Hub().serve() as served:
        yield served


def python(hub, home, program, **more):
    """Output of a program in a process of its own, whose cache is in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment(hub, home) | more,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SHOW = """
import json
from rdrop_jax.data import hub
from rdrop_jax.errors import InputError
def show(text, commit=""):
    try:
        found = hub.load(text, commit)
    except InputError as error:
        return {"error": str(error)}
    chosen = hub.choose(found, {})
    first = next(hub.rows(found, chosen["train"], ["text", "label", "absent"]))
    names = hub.class_names(found, chosen["train"], "label")
    return {"commit": found.commit, "chosen": chosen, "first": first.fields,
            "names": names, "rows": len(found.splits["train"])}
"""


def shown(hub, home, *calls, **more):
    program = SHOW + "".join(f"print(json.dumps(show(*{call!r})))\n" for call in calls)
    lines = python(hub, home, program, **more).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_splits_classes_and_rows_then_offline(hub, tmp_path):
    commit = hub.add(REPO, repository(), kind="datasets")
    name = f"hf:{REPO}/pairs"
    (found,) = shown(hub, tmp_path, (name,))
    assert found["commit"] == commit
    assert found["chosen"] == {s: s for s in ("train", "validation", "test")}
    assert found["names"] == ["good", "bad"]
    assert found["first"] == {k: rows(48)[0][k] for k in ("text", "label")}
    asked = len(hub.requests)
    (again,) = shown(hub, tmp_path, (name,), HF_HUB_OFFLINE="1")
    assert again == found
    assert len(hub.requests) == asked


def test_revisions_and_the_recorded_commit(hub, tmp_path):
    first = hub.add(REPO, repository(), kind="datasets", refs=("v1", "main"))
    changed = repository() | {"pairs/train-00000.parquet": table(40, 5)}
    second = hub.add(REPO, changed, kind="datasets")
    name = f"hf:{REPO}/pairs"
    found = shown(hub, tmp_path, (name,), (f"{name}@v1",), (name, first))
    assert [f["commit"] for f in found] == [second, first, first]
    assert [f["rows"] for f in found] == [40, 48, 48]


def test_what_is_refused(hub, tmp_path):
    hub.add(REPO, repository(), kind="datasets")
    hub.add("org/gated", repository(), kind="datasets")
    hub.gated.add("org/gated")
    hub.add("org/script", {"script.py": "raise SystemExit(9)"}, kind="datasets")
    hub.add("org/empty", {"README.md": "# none"}, kind="datasets")
    broken = repository() | {"pairs/train-00000.parquet": b"PAR1broken"}
    hub.add("org/broken", broken, kind="datasets")
    wanted = {
        "hf:org/none": "found none of this name",
        f"hf:{REPO}/pairs@v9": "found no 'v9'",
        f"hf:{REPO}/other": "pairs",
        "hf:org/gated": "gated. Accept its terms",
        "hf:org/script": "script",
        "hf:org/empty": "cannot be read",
        "hf:org/broken/pairs": "cannot be read",
        "hf:a b": "expected hf:ORG/NAME[/CONFIG]",
    }
    found = shown(hub, tmp_path, *((name,) for name in wanted))
    for (name, text), answer in zip(wanted.items(), found, strict=True):
        assert text in answer.get("error", ""), (name, answer)
        assert answer["error"].startswith("data.name: "), answer
        assert "\n" not in answer["error"]


def test_no_network_and_no_cache(hub, tmp_path):
    name = (f"hf:{REPO}/pairs",)
    (offline,) = shown(hub, tmp_path, name, HF_HUB_OFFLINE="1")
    (none,) = shown(hub, tmp_path, name, HF_ENDPOINT="http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE is set, found none" in offline["error"]
    assert "cannot be reached" in none["error"]
    for found in (offline, none):
        assert found["error"].startswith(f"data.name: {name[0]}: ")
        assert "\n" not in found["error"]


def test_splits_that_the_user_names():
    found = data_hub.Loaded("hf:a/b", "0", {"train": 0, "dev": 0, "extra": 0})
    chosen = data_hub.choose(found, {"test": "extra"})
    assert chosen == {"train": "train", "validation": "dev", "test": "extra"}
    with pytest.raises(InputError, match=r"data.files.test: expected a split of hf:a/"):
        data_hub.choose(found, {"test": "extro"})
    with pytest.raises(InputError, match=r"data.files.train: expected the name of a"):
        data_hub.choose(data_hub.Loaded("hf:a/b", "0", {"x": 0}), {})


TINY_MODEL = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
}


def model():
    """Files of a repository with a tiny random BERT, without head, and a tokenizer."""
    texts = [row[c] for row in rows(48) for c in ("text", "text_b")]
    tokenizer = subwords.train_wordpiece(texts, 100)
    size, rng = tokenizer.get_vocab_size(), np.random.default_rng(0)
    encoder = Encoder(
        kind="bert",
        size=Size(1, 32, 2, 32),
        vocab_size=size,
        max_positions=32,
        num_types=2,
        pad_id=0,
        norm_eps=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        dtype=jnp.dtype("float32"),
        remat=False,
        masks="hash",
    )
    module = Classifier(encoder, outputs=2)
    shapes = jax.eval_shape(lambda key: task.init(module, key), jax.random.key(0))
    ours = {
        name: rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        for name, leaf in flatten(shapes).items()
    }
    arrays = bert.to_theirs(ours, "bert")
    kept = {k: np.ascontiguousarray(x) for k, x in arrays.items() if "classif" not in k}
    return {
        "config.json": json.dumps(TINY_MODEL | {"vocab_size": size}),
        "model.safetensors": save(kept),
        "tokenizer.json": tokenizer.to_str(),
    }


def test_trains_from_a_model_and_a_dataset_by_name(hub, tmp_path):
    """From an empty cache, then offline from the cache, with the same bits."""
    hub.add("org/tiny-bert", model())
    commit = hub.add(REPO, repository(), kind="datasets")
    name = f"hf:{REPO}/pairs"
    kept = ("total_steps", "batch_size", "eval.every", "log.trackers")
    kept += ("data.max_length", "data.buckets", "checkpoint.every")
    overrides = {n: TINY[n] for n in kept}
    overrides |= {"init_from": "hf:org/tiny-bert", "data.name": name}
    overrides |= {"data.columns.text_b": "text_b"}
    flags = [f"--config.{k}={v}" for k, v in overrides.items()]
    found = []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        workdir = tmp_path / f"run{len(found)}"
        argv = [sys.executable, "-m", "rdrop_jax.train", f"--config={GLUE}:files"]
        done = subprocess.run(
            [*argv, f"--workdir={workdir}", *flags],
            env=os.environ | environment(hub, tmp_path / "home") | more,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((workdir / "result.json").read_text()))
    first, second = found
    assert first["data"][name] == commit
    assert first["init"]["commit"] in done.stdout + done.stderr
    assert first["test"] == second["test"]
    assert first["test"]["examples"] == 16
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["data"]["classes"] == ["good", "bad"]
    assert stored["data"]["files"] == {s: s for s in ("train", "validation", "test")}
    assert stored["model"]["width"] == 32


PAIRS = """
import json
from ml_collections import ConfigDict
from rdrop_jax.tasks.{package} import {module}
data = ConfigDict({data!r})
found = {module}.find(data)
found.check_files()
print(json.dumps([{{s: [r().source, r().target] for s, r in found.splits.items()}},
                  found.provenance()]))
"""


def pair_data(name, **columns):
    splits = dict.fromkeys(("train", "validation", "test"), "")
    sizes = {"validation": 2.0, "test": 2.0, "split_seed": 0, "dir": ""}
    return {"name": name, "files": splits, "columns": columns} | sizes


def test_pairs_of_languages(hub, tmp_path):
    lines = {
        split: "".join(
            json.dumps({"translation": {"de": f"{split}  Satz {i}", "en": f"line {i}"}})
            + "\n"
            for i in range(3)
        )
        for split in ("train", "validation", "test")
    }
    files = {f"{split}.jsonl": text for split, text in lines.items()}
    commit = hub.add("org/pairs", files, kind="datasets")
    data = pair_data("hf:org/pairs", source="source", target="target")
    data |= {"source": "en", "target": "de"}
    names = {"package": "translation", "module": "translation_sets"}
    out = python(hub, tmp_path, PAIRS.format(data=data, **names))
    splits, provenance = json.loads(out.splitlines()[-1])
    assert provenance == {"hf:org/pairs": commit}
    for split, (source, target) in splits.items():
        assert source == [f"line {i}" for i in range(3)]
        assert target == [f"{split} Satz {i}" for i in range(3)]


def test_summaries_with_splits_held_out(hub, tmp_path):
    found = [
        {"article": f"long text {i}", "highlights": f"short {i}"} for i in range(9)
    ]
    found[4]["highlights"] = ""
    text = "".join(json.dumps(row) + "\n" for row in found)
    hub.add("org/news", {"data/train.jsonl": text}, kind="datasets")
    data = pair_data("hf:org/news", source="article", target="highlights")
    names = {"package": "summarization", "module": "summary_sets"}
    out = python(hub, tmp_path, PAIRS.format(data=data, **names))
    splits, _ = json.loads(out.splitlines()[-1])
    assert {s: len(source) for s, (source, _) in splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    together = [t for source, _ in splits.values() for t in source]
    assert sorted(together) == [f"long text {i}" for i in range(9) if i != 4]


IMAGES = """
import json
from ml_collections import ConfigDict
import numpy as np
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.image_classification.decode import decode
data = ConfigDict({data!r})
found = image_sets.find(data)
rows = image_sets.open_split(found, data, "train")
held = image_sets.open_split(found, data, "validation")
first = np.asarray(decode(rows[0]["image"], 3))
print(json.dumps([found.classes, [*found.splits], len(rows), len(held),
                  first.shape, sorted(map(int, rows.labels)), rows.name(1)]))
"""


def test_images(hub, tmp_path):
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
            "coarse_label": datasets.ClassLabel(names=["pet"]),
        }
    )
    files = {}
    for split, count in (("train", 8), ("test", 3)):
        pixels = np.random.default_rng(0).integers(0, 255, (count, 5, 4, 3), np.uint8)
        found = datasets.Dataset.from_dict(
            {
                "img": [Image.fromarray(each) for each in pixels],
                "fine_label": [i % 2 for i in range(count)],
                "coarse_label": [0] * count,
            },
            features,
        )
        packed = io.BytesIO()
        found.to_parquet(packed)
        files[f"data/{split}-00000.parquet"] = packed.getvalue()
    hub.add("org/pets", files, kind="datasets")
    data = {"name": "hf:org/pets", "validation": 2, "test": 0, "split_seed": 0}
    out = python(hub, tmp_path, IMAGES.format(data=data))
    classes, splits, rows, held, shape, labels, name = json.loads(out.splitlines()[-1])
    assert classes == ["cat", "dog"]
    assert splits == ["train", "test"]
    assert (rows, held) == (6, 2)
    assert shape == [5, 4, 3]
    assert {*labels} == {0, 1}
    assert name.startswith("hf:org/pets, train")


TEXT = """
import json
from ml_collections import ConfigDict
from rdrop_jax.tasks.language_modeling import running_text
data = ConfigDict({data!r})
found = running_text.corpus(data)
print(json.dumps({{s: len(split.ids) for s, split in found.splits.items()}}))
"""


def test_running_text(hub, tmp_path):
    def lines(count):
        texts = ["", " = Title = \n", *(f"the cat number {i}\n" for i in range(count))]
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)

    files = {"README.md": CARD.split("configs:")[0].split("dataset_info")[0] + "---\n"}
    files |= {f"{s}.jsonl": lines(n) for s, n in (("train", 5), ("test", 2))}
    hub.add("org/text", files, kind="datasets")
    names = dict.fromkeys(("train", "validation", "test"), "")
    data = {"name": "hf:org/text", "files": names, "tokens": "words", "dir": ""}
    data |= {"validation": 1.0, "test": None, "vocab_size": 0, "min_count": 1}
    data |= {"vocabulary": "", "split_seed": 0}
    out = python(hub, tmp_path, TEXT.format(data=data))
    # A line ends with <eos>: "" 1, " = Title = " 4, "the cat number i" 5.
    assert json.loads(out.splitlines()[-1]) == {
        "train": 1 + 4 + 4 * 5,
        "validation": 5,
        "test": 1 + 4 + 2 * 5,
    }
