"""CNN/DailyMail (Hermann et al., 2015; See et al., 2017) from its published files.

The sources are either tables with columns ``article`` and ``highlights``, as on the
Hugging Face hub, or the stories of both papers with the URL lists that define the
splits. Each text is one line, otherwise unchanged.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdrop_jax.data import tables
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files import archives, lines
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.tasks.seq2seq.prepared_text import Writer

_logger = logging.getLogger(__name__)
ENDINGS = ("article", "highlights")
# Version 3.0.0 of the tables. See et al. report 287,226 training articles, some empty.
ROWS = {"train": 287_113, "validation": 13_368, "test": 11_490}
STORIES = ("cnn_stories.tgz", "dailymail_stories.tgz")
LISTS = {"train": "all_train.txt", "validation": "all_val.txt", "test": "all_test.txt"}
_ENDS = (".", "!", "?", "...", "'", "`", '"', "\u2019", "\u201d", ")")
_LARGEST = 2**22  # bytes of a story


def prepare(folder: Path, sources: Sequence[Path]) -> Path:
    """Write CNN/DailyMail as gzipped text.

    Args:
      folder: output folder.
      sources: folders or files: tables whose names begin with the split, such as
        ``train-00000-of-00003.parquet``, ``validation.jsonl.gz`` and ``test.tsv``; or
        cnn_stories.tgz and dailymail_stories.tgz with all_train.txt, all_val.txt and
        all_test.txt.

    Returns:
      The folder.

    Raises:
      InputError: a file is missing or corrupt.
    """
    files = [
        path
        for source in sources
        for path in (sorted(source.iterdir()) if source.is_dir() else [source])
        if path.is_file()
    ]
    writer = Writer(folder, ENDINGS)
    rows, empty = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    with contextlib.ExitStack() as stack:
        add = {split: stack.enter_context(writer.open(split)) for split in SPLITS}
        stories = any(path.name in STORIES for path in files)
        for split, article, highlights in (_stories if stories else _tables)(files):
            if article and highlights:
                add[split](article, highlights)
                rows[split] += 1
            else:
                empty[split] += 1
    for split, count in rows.items():
        less = (
            f"; {empty[split]} with an empty article or summary left out"
            if empty[split]
            else ""
        )
        published = ROWS[split]
        _logger.info("%s: %d articles; published: %d%s", split, count, published, less)
    return writer.finish({"published": ROWS})


def _tables(files: list[Path]) -> Iterator[tuple[str, str, str]]:
    for split in SPLITS:
        parts = [
            path
            for path in files
            if path.name.startswith((split, split[:3] + ".")) and tables.is_table(path)
        ]
        if not parts:
            raise InputError(
                f"--from: expected tables of {split}, such as {split}.jsonl or "
                f"{split}-00000-of-00001.parquet, or {' and '.join(STORIES)}, found "
                f"none in {len(files)} files"
            )
        for path in parts:
            for article, highlights in parallel.texts(path, ENDINGS):
                yield split, " ".join(article), " ".join(highlights)


def _stories(files: list[Path]) -> Iterator[tuple[str, str, str]]:
    named = {path.name: path for path in files}
    missing = {*STORIES, *LISTS.values()} - named.keys()
    if missing:
        raise InputError(f"--from: expected {', '.join(sorted(missing))}, found none")
    splits = {
        hashlib.sha1(url.strip().encode(), usedforsecurity=False).hexdigest(): split
        for split, name in LISTS.items()
        for url in lines.read(named[name])
    }
    for name in STORIES:
        with archives.open_tar(named[name]) as archive:
            for member in archives.members(archive, name):
                split = splits.get(Path(member.name).stem)
                if split and member.name.endswith(".story"):
                    content = archives.read(archive, member, name, _LARGEST)
                    yield split, *story(content.decode(errors="replace"))


def story(text: str) -> tuple[str, str]:
    """Parse a story into article and highlights, adding missing full stops.

    Example:
      >>> story("A man ran\\n\\n@highlight\\n\\nMan runs\\n\\n@highlight\\n\\nHe won!")
      ('A man ran .', 'Man runs . He won!')
    """
    article: list[str] = []
    highlights: list[str] = []
    for line in (" ".join(line.split()) for line in text.splitlines()):
        if line == "@highlight":
            highlights.append("")
        elif line:
            ended = line if line.endswith(_ENDS) else f"{line} ."
            if highlights:
                highlights[-1] = f"{highlights[-1]} {ended}".strip()
            else:
                article.append(ended)
    return " ".join(article), " ".join(filter(None, highlights))
