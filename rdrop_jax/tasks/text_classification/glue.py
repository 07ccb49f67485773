"""The eight GLUE tasks of the paper: columns, classes and preparation.

    DATA_DIR/glue/rte/index.json
    DATA_DIR/glue/rte/train.jsonl, validation.jsonl, test.jsonl

The sources are the .tsv files in the archives linked from
https://gluebenchmark.com/tasks. Column names are those of their header lines.
"""

import functools
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rdrop_jax.data import index as index_lib
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, lines
from rdrop_jax.files.disk import new_folder

_logger = logging.getLogger(__name__)
PREFIX = "glue/"
_LARGEST = 2**30  # bytes of a file of GLUE, unpacked
_SPLITS = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_MNLI = {
    "train": "train.tsv",
    "validation": "dev_matched.tsv",
    "validation_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}


@dataclass(frozen=True)
class GlueTask:
    """Files, columns and classes of a task.

    Attributes:
      folder: folder in the archives.
      text: column of the text, or of the first text of a pair.
      text_b: column of the second text; empty for single texts.
      label: column of the label, which test files lack.
      classes: class names by id; empty for numeric labels.
      splits: files by split.
      header: columns of train and dev files without a header line.
      features: tensorflow-datasets' feature names by column, where they differ.
      ragged: True if some lines are known to lack a column; those are skipped.
    """

    folder: str
    text: str
    text_b: str
    label: str
    classes: tuple[str, ...]
    splits: Mapping[str, str] = field(default_factory=lambda: _SPLITS)
    header: tuple[str, ...] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    ragged: bool = False


_ENTAILED = ("entailment", "not_entailment")
TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        "sentence",
        "",
        "label",
        ("unacceptable", "acceptable"),
        header=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTask("SST-2", "sentence", "", "label", ("negative", "positive")),
    "mrpc": GlueTask(
        "MRPC",
        "#1 String",
        "#2 String",
        "Quality",
        ("not_equivalent", "equivalent"),
        features={"#1 String": "sentence1", "#2 String": "sentence2"},
    ),
    "qqp": GlueTask(
        "QQP",
        "question1",
        "question2",
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ragged=True,
    ),
    "stsb": GlueTask("STS-B", "sentence1", "sentence2", "score", ()),
    "mnli": GlueTask(
        "MNLI",
        "sentence1",
        "sentence2",
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        _MNLI,
        features={"sentence1": "premise", "sentence2": "hypothesis"},
    ),
    "qnli": GlueTask("QNLI", "question", "sentence", "label", _ENTAILED),
    "rte": GlueTask("RTE", "sentence1", "sentence2", "label", _ENTAILED),
}


def preparer(name: str) -> Callable[..., Path]:
    """Return `prepare` for one task."""
    return functools.partial(prepare, name)


def prepare(name: str, folder: Path, files: Sequence[Path]) -> Path:
    """Write one task in the format that training reads.

    Args:
      name: key of `TASKS`.
      folder: output folder.
      files: the task's .zip, or a folder with its .tsv files or with the task's folder.

    Returns:
      The folder.

    Raises:
      InputError: files that are missing, corrupt or in an unexpected format.
    """
    task = TASKS[name]
    splits = {}
    with new_folder(folder) as partial:
        for split, file in task.splits.items():
            path = partial / f"{split}.jsonl"
            written = _write(task, split, file, files, path)
            splits[split] = {
                "rows": written,
                "bytes": path.stat().st_size,
                "sha256": checksums.sha256(path),
            }
            _logger.info("%s: %d rows", split, written)
        sources = {f.name: checksums.sha256(f) for f in files if f.is_file()}
        index = {"format": index_lib.FORMAT, "classes": task.classes, "splits": splits}
        text = json.dumps(index | {"sources": sources}, indent=1) + "\n"
        (partial / "index.json").write_text(text)
    return folder


def _write(
    task: GlueTask,
    split: str,
    file: str,
    sources: Sequence[Path],
    path: Path,
) -> int:
    """Write the rows of a split and return their number."""
    written, origin = 0, f"{task.folder}/{file}"
    with _open(task, file, sources) as content, path.open("w", encoding="utf-8") as out:
        for row in _rows(task, split, content, origin):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    if not written:
        raise InputError(f"{origin}: expected rows, found none")
    return written


def _open(task: GlueTask, file: str, sources: Sequence[Path]) -> io.BufferedIOBase:
    """Open a file of the task in the first source that has it."""
    for source in sources:
        if source.suffix == ".zip":
            found = _open_zip(source, task.folder, file)
            if found is not None:
                return found
        for path in (source / task.folder / file, source / file):
            if path.is_file():
                return path.open("rb")
    raise InputError(
        f"--from: expected {task.folder}.zip, or a folder with {task.folder}/{file}, "
        f"found neither in {', '.join(map(str, sources))}"
    )


def _open_zip(path: Path, folder: str, file: str) -> io.BufferedIOBase | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if Path(member.filename).parts[-2:] != (folder, file):
                    continue
                if member.file_size > _LARGEST:
                    raise InputError(
                        f"--from: {path}: {member.filename}: expected at most "
                        f"{_LARGEST} bytes, found {member.file_size}"
                    )
                return cast(io.BufferedIOBase, archive.open(member))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"--from: {path}: expected a zip archive, found a truncated file or "
            f"another format: {error}"
        ) from error
    return None


def _rows(
    task: GlueTask,
    split: str,
    file: io.BufferedIOBase,
    origin: str,
) -> Iterator[dict[str, Any]]:
    """Yield rows in output format: ``text``, ``text_b``, ``label``."""
    columns = list(task.header) if not split.startswith("test") else []
    labelled = not split.startswith("test")
    needed = [c for c in (task.text, task.text_b, task.label * labelled) if c]
    left_out = 0
    for place, line in lines.placed(lines.decoded(file, origin), origin):
        values = line.split("\t")
        if not columns:
            columns = values
            missing = [c for c in needed if c not in columns]
            if missing:
                raise InputError(
                    f"{place}: expected the columns {', '.join(needed)}, found "
                    f"{', '.join(columns)}"
                )
            continue
        fields = dict(zip(columns, values, strict=False))
        if len(values) < len(columns) or not all(fields[c].strip() for c in needed):
            if not task.ragged:
                raise InputError(
                    f"{place}: expected {len(columns)} columns and no empty "
                    f"{' or '.join(needed)}, found {line[:60]!r}"
                )
            left_out += 1
            continue
        row: dict[str, Any] = {"text": fields[task.text]}
        if task.text_b:
            row["text_b"] = fields[task.text_b]
        row["label"] = _label(task, fields[task.label], place) if labelled else None
        yield row
    if left_out:
        _logger.info(
            "%s: left out %d lines that lack a text or a label", split, left_out
        )


def _label(task: GlueTask, text: str, place: str) -> str | float:
    if not task.classes:
        try:
            return float(text)
        except ValueError as error:
            raise InputError(f"{place}: expected a score, found {text!r}") from error
    known = dict(enumerate(task.classes))
    if text.isdecimal() and int(text) in known:
        return known[int(text)]
    if text not in task.classes:
        raise InputError(
            f"{place}: expected one of {', '.join(task.classes)}, found {text!r}"
        )
    return text
