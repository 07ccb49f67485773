"""Datasets by name from a hub on loopback, through the real library."""

import errno
import io
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import Hub, forget, go_offline, use_datasets
from helpers.texts import rows
from huggingface_hub import constants, file_download
from ml_collections import ConfigDict
from PIL import Image

from rdrop_jax import flags, tasks
from rdrop_jax.data import hub as data_hub
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import hub_images, image_sets
from rdrop_jax.tasks.image_classification.decode import Decoded, decode
from rdrop_jax.tasks.language_modeling import running_text
from rdrop_jax.tasks.summarization import summary_sets
from rdrop_jax.tasks.text_classification import text_hub
from rdrop_jax.tasks.translation import translation_sets

datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
from datasets import arrow_writer, builder  # noqa: E402
from helpers.repositories import CARD, FILMS, film_rows, films, pets  # noqa: E402
from pyarrow import parquet  # noqa: E402


def show(text, commit=""):
    """Facts of a dataset, loaded as in a new process."""
    forget()
    found = data_hub.load(text, commit)
    chosen = data_hub.choose(found, {})
    first = next(data_hub.rows(found, chosen["train"], ["text", "label", "absent"]))
    return {
        "commit": found.provenance[text],
        "chosen": chosen,
        "first": first.fields,
        "names": data_hub.class_names(found, chosen["train"], "label"),
        "rows": len(found.splits["train"]),
    }


def refused(text, commit=""):
    with pytest.raises(InputError) as found:
        show(text, commit)
    message = str(found.value)
    assert message.startswith("data.name: ")
    assert "\n" not in message
    return message


def test_splits_classes_and_rows_then_offline(hub, monkeypatch):
    commit = hub.add(FILMS, films(), kind="datasets")
    name = f"hf:{FILMS}/pairs"
    found = show(name)
    assert found["commit"] == commit
    assert found["chosen"] == {s: s for s in ("train", "validation", "test")}
    assert found["names"] == ("good", "bad")
    assert found["first"] == {k: rows(48)[0][k] for k in ("text", "label")}
    asked = len(hub.requests)
    go_offline(monkeypatch)
    assert show(name) == found
    assert len(hub.requests) == asked


def test_revisions_and_the_recorded_commit(hub):
    first = hub.add(FILMS, films(), kind="datasets", refs=("v1", "main"))
    changed = films() | {"pairs/train-00000.parquet": film_rows(40, 5)}
    second = hub.add(FILMS, changed, kind="datasets")
    name = f"hf:{FILMS}/pairs"
    found = [show(name), show(f"{name}@v1"), show(name, first)]
    assert [f["commit"] for f in found] == [second, first, first]
    assert [f["rows"] for f in found] == [40, 48, 48]


def test_offline_at_a_commit_of_two_in_the_cache(hub, monkeypatch):
    first = hub.add(FILMS, films(), kind="datasets")
    name = f"hf:{FILMS}/pairs"
    show(name)
    changed = films() | {"pairs/train-00000.parquet": film_rows(40, 5)}
    second = hub.add(FILMS, changed, kind="datasets")
    show(name)
    go_offline(monkeypatch)
    found = [show(name, first), show(name, second), show(f"{name}@{first}")]
    assert [f["commit"] for f in found] == [first, second, first]
    assert [f["rows"] for f in found] == [48, 40, 48]
    assert f"expected commit {'0' * 40}, found none" in refused(name, "0" * 40)


def test_what_is_refused(hub):
    hub.add(FILMS, films(), kind="datasets")
    hub.add("org/gated", films(), kind="datasets")
    hub.gated.add("org/gated")
    hub.add("org/script", {"script.py": "raise SystemExit(9)"}, kind="datasets")
    hub.add("org/empty", {"README.md": "# none"}, kind="datasets")
    broken = films() | {"pairs/train-00000.parquet": b"PAR1broken"}
    hub.add("org/broken", broken, kind="datasets")
    wanted = {
        "hf:org/none": "found none of this name",
        f"hf:{FILMS}/pairs@v9": "found no 'v9'",
        f"hf:{FILMS}/other": "pairs",
        "hf:org/gated": "gated. Accept its terms",
        "hf:org/script": "found a script, .* append @refs/convert/parquet",
        "hf:org/empty": "cannot be read",
        "hf:org/broken/pairs": "cannot be read",
        "hf:a b": r"expected hf:ORG/NAME\[/CONFIG\]",
    }
    for name, text in wanted.items():
        assert re.search(text, refused(name)), name


def test_a_conversion_to_parquet_in_place_of_a_script(hub, monkeypatch):
    hub.add("org/talks", {"talks.py": "raise SystemExit(9)"}, kind="datasets")
    files = {
        f"{config}/{split}/0000.parquet": film_rows(count, 0)
        for config, count in (("a-b", 5), ("a-c", 7))
        for split in ("train", "test")
    }
    branch = data_hub.CONVERTED
    commit = hub.add("org/talks", files, kind="datasets", refs=(branch,))
    names = [f"hf:org/talks/{config}@{branch}" for config in ("a-b", "a-c")]
    online = [show(name) for name in names]
    assert [(f["rows"], f["commit"]) for f in online] == [(5, commit), (7, commit)]
    assert online[0]["chosen"] == {"train": "train", "test": "test"}
    go_offline(monkeypatch)
    assert [show(name) for name in names] == online
    assert [show(name, commit) for name in names] == online
    assert "cannot be read" in refused(f"hf:org/talks/a-d@{branch}")


def test_no_network_and_no_cache(hub, monkeypatch, tmp_path):
    name = f"hf:{FILMS}/pairs"
    gone = Hub()
    gone.url = "http://127.0.0.1:9"
    with monkeypatch.context() as patched:
        use_datasets(patched, gone, tmp_path / "home")
        patched.setattr(time, "sleep", lambda seconds: None)  # between attempts
        assert "cannot be reached" in refused(name)
    go_offline(monkeypatch)
    assert "HF_HUB_OFFLINE is set, found none" in refused(name)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refused(hub, monkeypatch, status):
    hub.add(FILMS, films(), kind="datasets")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    hub.status = status
    message = refused(f"hf:{FILMS}/pairs")
    assert ("HF_TOKEN" in message) == (status != 500)
    hub.status = None
    found = show(f"hf:{FILMS}/pairs")
    hub.status = status
    assert show(f"hf:{FILMS}/pairs") == found  # from the cache


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_gated_until_there_is_a_token(hub, monkeypatch, token):
    hub.add("org/gated", films(), kind="datasets")
    hub.gated.add("org/gated")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert "gated. Accept its terms" in refused("hf:org/gated/pairs")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert show("hf:org/gated/pairs")["rows"] == 48


def test_a_download_that_breaks_off_resumes(hub, monkeypatch):
    hub.add(FILMS, films(), kind="datasets")
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut = 1000
    assert show(f"hf:{FILMS}/pairs")["rows"] == 48
    ranges = [ranged for *_, ranged in hub.downloads(".parquet") if ranged]
    assert ranges == ["bytes=1000-"]


@pytest.mark.parametrize("other", [film_rows(48, 5), b"PAR1"])
def test_a_corrupt_file_is_not_used(hub, tmp_path, other):
    """Other rows of the same size, or no rows at all."""
    name, rows = "pairs/train-00000.parquet", films()["pairs/train-00000.parquet"]
    hub.add(FILMS, films(), kind="datasets")
    hub.wrong[name] = other[: len(rows)].ljust(len(rows), b"0")
    message = refused(f"hf:{FILMS}/pairs")
    assert f"{name}: expected the checksum" in message
    assert not [*(tmp_path / "home").rglob("*.arrow")]
    hub.wrong.clear()
    Path(message.split("Delete ")[1].split(",")[0]).unlink()
    assert show(f"hf:{FILMS}/pairs")["first"]["text"] == texts_of(rows)[0]


def texts_of(content):
    return parquet.read_table(io.BytesIO(content))["text"].to_pylist()


@pytest.mark.parametrize("place", ["download", "conversion", "check"])
def test_no_space(hub, monkeypatch, tmp_path, place):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob")

    hub.add(FILMS, films(), kind="datasets")
    with monkeypatch.context() as patched:
        if place == "download":
            patched.setattr(file_download, "http_get", full)
        elif place == "conversion":
            patched.setattr(arrow_writer.ArrowWriter, "write_table", full)
        else:
            missing = lambda *args, **options: False  # noqa: E731
            patched.setattr(builder, "has_sufficient_disk_space", missing)
        message = refused(f"hf:{FILMS}/pairs")
    assert "No space left on device). Free some space, or set HF_HOME" in message
    assert show(f"hf:{FILMS}/pairs")["rows"] == 48


def test_offline_a_branch_or_tag_is_the_recorded_one(hub, monkeypatch):
    name, changed = f"hf:{FILMS}/pairs", dict(films())
    first = hub.add(FILMS, changed, kind="datasets", refs=("v1", "main"))
    assert show(f"{name}@v1")["commit"] == first
    changed["pairs/train-00000.parquet"] = film_rows(40, 5)
    second = hub.add(FILMS, changed, kind="datasets")
    assert show(name)["commit"] == second
    assert show(f"{name}@v1")["commit"] == first
    # The newest copy in the cache is that of a third commit, asked for by its id.
    third = hub.add(FILMS, changed, kind="datasets", refs=("v3",))
    show(f"{name}@{third}")
    go_offline(monkeypatch)
    assert show(name)["commit"] == second
    assert show(f"{name}@v1")["commit"] == first
    assert "complete copy of 'v3' in the cache" in refused(f"{name}@v3")


def test_splits_that_the_user_names():
    found = data_hub.Loaded(
        "hf:a/b", {"hf:a/b": "0"}, {"train": 0, "dev": 0, "extra": 0}
    )
    chosen = data_hub.choose(found, {"test": "extra"})
    assert chosen == {"train": "train", "validation": "dev", "test": "extra"}
    with pytest.raises(InputError, match=r"data.files.test: expected a split of hf:a/"):
        data_hub.choose(found, {"test": "extro"})
    with pytest.raises(InputError, match=r"data.files.train: expected the name of a"):
        data_hub.choose(data_hub.Loaded("hf:a/b", {}, {"x": 0}), {})


def pair_data(name, **columns):
    splits = dict.fromkeys(("train", "validation", "test"), "")
    sizes = {"validation": 2.0, "test": 2.0, "split_seed": 0, "dir": ""}
    return {"name": name, "files": splits, "columns": columns} | sizes


def test_pairs_of_languages(hub):
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
    found = translation_sets.find(ConfigDict(data))
    assert found.provenance() == {"hf:org/pairs": commit}
    for split, read in found.splits.items():
        assert read().source == [f"line {i}" for i in range(3)]
        assert read().target == [f"{split} Satz {i}" for i in range(3)]


def test_a_test_split_with_labels_in_a_field_is_kept(hub):
    text = "".join(
        f'{{"text": "{i}", "meta": {{"label": {i % 2}}}}}\n' for i in range(4)
    )
    files = {"train.jsonl": text, "test.jsonl": text}
    hub.add("org/nested", files, kind="datasets")
    columns = {"columns.text": "text", "columns.label": "meta.label"}
    given = {"name": "hf:org/nested", "validation": "1"} | columns
    config = flags.load("configs/glue.py:files", {f"data.{k}": given[k] for k in given})
    assert text_hub.splits(config.data) == {"train": "train", "test": "test"}
    config.data.files.train = "train.jsonl"
    with pytest.raises(InputError, match=r"data\.files\.train: expected a split of"):
        tasks.check_data(config)


def test_a_named_test_split_without_labels_is_refused(hub):
    hub.add("org/films", films(known=False), kind="datasets")
    given = {"data.name": "hf:org/films/pairs"}
    named = given | {"data.files.test": "test"}
    assert not tasks.check_data(
        flags.load("configs/glue.py:files", given)
    ).data.files.test
    with pytest.raises(InputError, match=r"data\.files\.test: expected labelled rows"):
        tasks.check_data(flags.load("configs/glue.py:files", named))
    scored = named | {"eval.test": "false"}
    tasks.check_data(flags.load("configs/glue.py:files", scored))


def test_images_without_a_class():
    feature = datasets.ClassLabel(names=["cat", "dog"])
    photo = Image.new("RGB", (2, 2))
    splits = {}
    for split, labels in {"train": [1, None], "test": [None, None]}.items():
        splits[split] = datasets.Dataset.from_dict(
            {"image": [photo] * 2, "label": labels},
            datasets.Features({"image": datasets.Image(), "label": feature}),
        )
    found = data_hub.Loaded("hf:a/b", {}, splits)
    rows = hub_images.HubImages(found, "train", ("image", "label"))
    assert rows.labels.tolist() == [1, -1]
    assert not hub_images.labelled(found, "test", "label")


def test_a_missing_image_is_named_or_skipped():
    photos = [Image.new("RGB", (2, 2)), None]
    feature = datasets.ClassLabel(names=["cat", "dog"])
    table = datasets.Dataset.from_dict(
        {"image": photos, "label": [0, 1]},
        datasets.Features({"image": datasets.Image(), "label": feature}),
    )
    found = data_hub.Loaded("hf:a/b", {}, {"train": table})
    rows = hub_images.HubImages(found, "train", ("image", "label"))
    strict, lenient = (
        Decoded(rows, channels=3, num_classes=2, skip_bad=skip)
        for skip in (False, True)
    )
    with pytest.raises(
        InputError, match=r"train, row 1: expected an image, found none"
    ):
        strict[1]
    assert not lenient[1]["where"]
    assert list(lenient.skipped.values()) == ["expected an image, found none"]


def test_summaries_with_splits_held_out(hub):
    found = [
        {"article": f"long text {i}", "highlights": f"short {i}"} for i in range(9)
    ]
    found[4]["highlights"] = ""
    text = "".join(json.dumps(row) + "\n" for row in found)
    hub.add("org/news", {"data/train.jsonl": text}, kind="datasets")
    data = pair_data("hf:org/news", source="article", target="highlights")
    # Names of the presets for files.
    data["files"] = {"train": "train.jsonl", "validation": "validation", "test": ""}
    splits = {
        split: read().source
        for split, read in summary_sets.find(ConfigDict(data)).splits.items()
    }
    sizes = {split: len(sources) for split, sources in splits.items()}
    assert sizes == {"train": 4, "validation": 2, "test": 2}
    together = [text for sources in splits.values() for text in sources]
    assert sorted(together) == [f"long text {i}" for i in range(9) if i != 4]


def test_images(hub):
    hub.add("org/pets", pets(), kind="datasets")
    data = {"name": "hf:org/pets", "validation": 2.0, "test": 0.0, "split_seed": 0}
    data["files"] = dict.fromkeys(("train", "validation", "test"), "")
    data["columns"] = {"image": "", "label": "", "group": ""}
    data |= {"folds": 0, "fold": 0}
    found = image_sets.find(ConfigDict(data))
    rows = image_sets.open_split(found, ConfigDict(data), "train")
    held = image_sets.open_split(found, ConfigDict(data), "validation")
    assert found.classes == ("cat", "dog")
    assert [*found.splits] == ["train", "test"]
    assert (len(rows), len(held)) == (6, 2)
    assert np.asarray(decode(rows[0]["image"], 3)).shape == (5, 4, 3)
    assert {*rows.labels} == {0, 1}
    assert rows.name(1).startswith("hf:org/pets, train")
    data["files"]["validation"] = "test"
    assert [*image_sets.find(ConfigDict(data)).splits] == ["train", "validation"]
    data["columns"] |= {"image": "img", "label": "img"}
    with pytest.raises(
        InputError,
        match=r"data\.columns\.label: expected a column of classes or integers of .*: "
        r"img \(Image\), fine_label \(ClassLabel\), .*, found 'img'",
    ):
        image_sets.find(ConfigDict(data))


def test_running_text(hub):
    def lines(count):
        texts = ["", " = Title = \n", *(f"the cat number {i}\n" for i in range(count))]
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)

    files = {"README.md": CARD.split("configs:")[0].split("dataset_info")[0] + "---\n"}
    files |= {f"{s}.jsonl": lines(n) for s, n in (("train", 5), ("test", 2))}
    commit = hub.add("org/text", files, kind="datasets")
    names = dict.fromkeys(("train", "validation", "test"), "")
    data = {"name": "hf:org/text", "files": names, "tokens": "words", "dir": ""}
    data["columns"] = {"text": "text"}
    data |= {"validation": 1.0, "test": None, "vocab_size": 0, "min_count": 1}
    data |= {"vocabulary": "", "split_seed": 0}
    found = running_text.corpus(ConfigDict(data))
    assert found.provenance["hf:org/text"] == commit
    # A line ends with <eos>: "" 1, " = Title = " 4, "the cat number i" 5.
    assert {split: len(text.ids) for split, text in found.splits.items()} == {
        "train": 1 + 4 + 4 * 5,
        "validation": 5,
        "test": 1 + 4 + 2 * 5,
    }
