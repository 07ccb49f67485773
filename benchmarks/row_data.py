"""Data folders of the results on public datasets, made from clones of their sources.

    python -m benchmarks.row_data --list
    python -m benchmarks.row_data sst2 --source CLONE --output FOLDER

The number of lines and the SHA-256 of each file are checked before anything is written.
Subsets take rows in the order of their SHA-256, so they need no random generator.
"""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.cli import flags, process
from rdrop_jax.errors import InputError
from rdrop_jax.files import disk

Content = Sequence[str] | dict[str, np.ndarray]  # lines, or arrays of an .npz file
Files = dict[str, Content]
_CIFAR100 = "cyizhuo/CIFAR-100-dataset@b105b30e79972558f19db69658f34b9d0a9b009b"
# Splits: name in the source, and rows of the subset for a CPU.
_SUBSETS = {
    "train": ("train", 5000),
    "validation": ("dev", 300),
    "test": ("test", 1000),
}
_CHECKSUMS = Path(__file__).parent / "row_data.json"


@dataclass(frozen=True)
class Dataset:
    """Source of a folder, and the function that reads it.

    Attributes:
      build: maps the folders of the sources to files.
      sources: repositories on GitHub, each with its commit.
    """

    build: Callable[..., Files]
    sources: tuple[str, ...]


def _shuffled(rows: Iterable[str]) -> list[str]:
    return sorted(rows, key=lambda row: hashlib.sha256(row.encode()).digest())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _pairs(name: str, rows: Iterable[str], source: str, target: str) -> Files:
    both = [row.split("\t") for row in rows]
    return {f"{name}.{source}": [x for x, _ in both]} | {
        f"{name}.{target}": [x for _, x in both]
    }


def sst2(folder: Path) -> Files:
    """Movie reviews: 500 and 5,000 balanced training rows; GLUE's dev is the test."""
    parts = {
        x: _lines(folder / f"data/SST-2/{x}.tsv") for x in ("train", "dev", "test")
    }
    header = parts["train"][0]

    def balanced(rows: list[str], count: int) -> list[str]:
        classes = ([x for x in _shuffled(rows) if x.endswith(y)] for y in "01")
        return [header, *(x for c in classes for x in c[: count // 2])]

    return {
        "train500.tsv": balanced(parts["train"][1:], 500),
        "train5000.tsv": balanced(parts["train"][1:], 5000),
        "validation.tsv": balanced(parts["dev"][1:], 500),
        "test.tsv": parts["test"],
    }


def english_swahili(folder: Path) -> Files:
    """News of lafand-mt, with subsets for a CPU."""
    found: Files = {}
    for name, (split, size) in _SUBSETS.items():
        texts = [
            [
                " ".join(x.split())
                for x in _lines(folder / f"data/text_files/en-swa/{f}")
            ]
            for f in (f"{split}.en", f"{split}.swa")
        ]
        rows = ["\t".join(pair) for pair in zip(*texts, strict=True)]
        found |= _pairs(name, rows, "en", "sw")
        found |= _pairs(f"{name}{size}", _shuffled(rows)[:size], "en", "sw")
    return found


def tatoeba(folder: Path) -> Files:
    """German-English: no English or German sentence is in two splits."""
    with zipfile.ZipFile(folder / "deu-eng.zip") as archive:
        text = archive.read("deu.txt").decode()
    rows = [row.split("\t")[:2] for row in text.splitlines()]
    pairs = _shuffled({f"{german}\t{english}" for english, german in rows})
    order = {english: i for i, english in enumerate(_shuffled({x for x, _ in rows}))}
    splits: dict[str, dict[str, str]] = {"test": {}, "validation": {}}
    train = []
    for pair in pairs:
        english = pair.split("\t")[1]
        if order[english] < 2000:
            name = "test" if order[english] < 1000 else "validation"
            splits[name].setdefault(english, pair)
        else:
            train.append(pair)
    test, validation = (list(x.values()) for x in splits.values())
    seen = {pair.split("\t")[0] for pair in test + validation}
    tested = {pair.split("\t")[0] for pair in test}
    validation = [x for x in validation if x.split("\t")[0] not in tested]
    train = [x for x in train if x.split("\t")[0] not in seen]
    return {
        **_pairs("train", train, "de", "en"),
        **_pairs("train5000", train[:5000], "de", "en"),
        **_pairs("validation", validation, "de", "en"),
        **_pairs("validation300", validation[:300], "de", "en"),
        **_pairs("test", test, "de", "en"),
    }


def conll2003(folder: Path) -> Files:
    """Named entities, with 500 and 2,000 training and 500 validation sentences."""
    texts = {
        x: (folder / f"data/conll2003/{x}.txt").read_text(encoding="utf-8")
        for x in ("train", "dev", "test")
    }
    parts = {x: [s for s in y.strip().split("\n\n") if s] for x, y in texts.items()}

    def joined(sentences: Iterable[str]) -> list[str]:
        return [line for s in sentences for line in (*s.strip().split("\n"), "")]

    return {
        "train.txt": joined(parts["train"]),
        "train500.txt": joined(_shuffled(parts["train"])[:500]),
        "train2000.txt": joined(_shuffled(parts["train"])[:2000]),
        "validation.txt": joined(parts["dev"]),
        "validation500.txt": joined(_shuffled(parts["dev"])[:500]),
        "test.txt": joined(parts["test"]),
    }


def wikitext2(train: Path, held_out: Path) -> Files:
    """WikiText-2, and its first 300,000 training and 50,000 validation words."""
    with zipfile.ZipFile(train / "wikitext-2-v1.zip") as archive:
        text = archive.read("wikitext-2/wiki.train.tokens").decode()
    # Fields of a CSV file: quotes around articles, and doubled quotes inside.
    rows = [row[0] for row in csv.reader(io.StringIO(text)) if row]
    lines = "".join(rows).removesuffix("\n").split("\n")
    found = {"train.txt": lines}
    for name, split in (("validation", "valid"), ("test", "test")):
        path = held_out / f"data/wikitext-2/wiki.{split}.tokens"
        found[f"{name}.txt"] = _lines(path)
    for name, size in (("train", 300_000), ("validation", 50_000)):
        ends = np.cumsum([len(line.split()) for line in found[f"{name}.txt"]])
        found[f"{name}{size}.txt"] = found[f"{name}.txt"][: int((ends <= size).sum())]
    return {**found}


def aeslc(folder: Path) -> Files:
    """E-mail bodies and their subjects, with subsets for a CPU."""
    found: Files = {}
    for name, (split, size) in _SUBSETS.items():
        rows = []
        for path in sorted((folder / f"enron_subject_line/{split}").glob("*.subject")):
            body, _, rest = path.read_text(encoding="utf-8").partition("@subject")
            texts = {"body": body, "subject": rest.partition("@ann0")[0]}
            row = {key: " ".join(text.split()) for key, text in texts.items()}
            rows.append(json.dumps(row, ensure_ascii=False))
        found[f"{name}.jsonl"] = rows
        found[f"{name}{size}.jsonl"] = _shuffled(rows)[:size]
    return found


def cifar100(folder: Path) -> Files:
    """CIFAR-100: 5,000 of the 50,000 training images validate; the whole test set."""
    return _cifar100(folder, 5000, 10_000)


def cifar100_small(folder: Path) -> Files:
    """CIFAR-100: 500 training images validate, and 1,000 images are the test set."""
    return _cifar100(folder, 500, 1000)


def _cifar100(folder: Path, held_out: int, tested: int) -> Files:
    from PIL import Image

    classes = sorted(path.name for path in (folder / "train").iterdir())

    def arrays(names: Sequence[str]) -> dict[str, np.ndarray]:
        images = [np.asarray(Image.open(folder / x).convert("RGB")) for x in names]
        labels = [classes.index(x.split("/")[1]) for x in names]
        return {"x": np.stack(images), "y": np.array(labels, np.uint8)}

    def balanced(split: str) -> list[str]:
        found = ((folder / split / name).glob("*.png") for name in classes)
        rows = (
            _shuffled(f"{split}/{p.parent.name}/{p.name}" for p in x) for x in found
        )
        return [name for row in zip(*rows, strict=True) for name in row]

    train, test = balanced("train"), balanced("test")
    return {
        "train.npz": arrays(train[held_out:]) | {"classes": np.array(classes)},
        "validation.npz": arrays(train[:held_out]),
        "test.npz": arrays(test[:tested]),
    }


DATASETS = {
    "sst2": Dataset(
        sst2, ("forest-snow/alps@3c7ef2c98249fc975a897b27f275695f97d5b7a9",)
    ),
    "english_swahili": Dataset(
        english_swahili,
        ("masakhane-io/lafand-mt@d441f8b063d63e95eafb72e84317359e27abf95e",),
    ),
    "tatoeba": Dataset(
        tatoeba, ("jhamburg/dats6450_nlp@fc38d83c4353d753fb9b34d98e945cbc5fab2811",)
    ),
    "conll2003": Dataset(
        conll2003, ("zhangjiawei98/BARTNER@9b3c463fc7e49539f782bc2a9dd133c5e603da74",)
    ),
    "wikitext2": Dataset(
        wikitext2,
        (
            "longluv1605/drive@8e58417f2423661c49c46ecd17b3df8f13792a5c",
            "pimondontknow/Privacy_FL_IoT@264c203c2bb4f6af352e797e4290eef84e9bb906",
        ),
    ),
    "aeslc": Dataset(
        aeslc, ("ryanzhumich/AESLC@7afc087a1cc234d07121f0d4a2d87102ddceabc2",)
    ),
    "cifar100": Dataset(cifar100, (_CIFAR100,)),
    "cifar100_small": Dataset(cifar100_small, (_CIFAR100,)),
}


def measured(content: Content) -> tuple[int, str]:
    """Return the number of lines or images, and the SHA-256 of a file's content.

    That of arrays covers images and labels: the format of .npz files may change.
    """
    if isinstance(content, dict):
        data = content["x"].tobytes() + content["y"].tobytes()
        return len(content["y"]), hashlib.sha256(data).hexdigest()
    text = "".join(f"{line}\n" for line in content)
    return len(content), hashlib.sha256(text.encode()).hexdigest()


def build(name: str, folders: Sequence[Path]) -> Files:
    """Make the files of a dataset and check them against the recorded checksums.

    Raises:
      InputError: a missing file of a source, or other rows than those recorded.
    """
    dataset = DATASETS[name]
    remedy = f"Check out {' and '.join(dataset.sources)} of github.com."
    if len(folders) != len(dataset.sources):
        raise InputError(
            f"--source: expected {len(dataset.sources)} folders, got {len(folders)}. "
            + remedy
        )
    try:
        files = dataset.build(*folders)
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise InputError(f"--source: incomplete: {error}. {remedy}") from error
    for file, (rows, digest) in disk.read_json(_CHECKSUMS)[name].items():
        found = measured(files[file])
        if found != (rows, digest):
            raise InputError(
                f"{file}: expected {rows} lines or images with SHA-256 "
                f"{digest[:12]}, got {found[0]} with {found[1][:12]}. {remedy}"
            )
    return files


def write(folder: Path, files: Files) -> None:
    """Write the files of a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            arrays: dict[str, Any] = content
            np.savez(folder / name, **arrays)
        else:
            text = "".join(f"{line}\n" for line in content)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main(argv: Sequence[str]) -> None:
    """Write one folder, or list the datasets."""
    parser = flags.Parser(prog="benchmarks.row_data", description=__doc__)
    parser.add_argument("name", nargs="?", choices=DATASETS)
    parser.add_argument("--source", type=flags.path, nargs="+", default=[])
    parser.add_argument("--output", type=flags.path)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args(argv)
    if args.list:
        for name, dataset in DATASETS.items():
            print(f"{name}: {dataset.build.__doc__} {', '.join(dataset.sources)}")
        return
    if args.name is None or args.output is None:
        raise InputError("expected the name of a dataset and --output, or --list")
    files = build(args.name, args.source)
    write(args.output, files)
    print("\n".join(f"{args.output / name}" for name in files))


if __name__ == "__main__":
    process.run(main)
