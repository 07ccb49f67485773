"""Reading and writing of weight files, never with pickle. Does not import jax."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rdrop_jax.errors import InputError, rust_explained
from rdrop_jax.files import checksums, hub, lfs, memory, npz_headers
from rdrop_jax.files.disk import publish, read_json, replaced
from rdrop_jax.training import workdir as workdir_lib

EXPECTED = (
    "a workdir, WORKDIR:STEP, a .npz, a .safetensors, a folder with config.json and "
    "model.safetensors, or hf:ORG/NAME"
)
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
# Buffers in old files that are not weights: 0, 1, 2, ... and zeros.
_COUNTERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Stored:
    """Arrays and config of weights on disk.

    Attributes:
      arrays: arrays by their names in the file.
      config: content of config.json; empty if absent.
      sha256: checksum of every file with arrays, by file name.
    """

    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


def is_weights(path: Path) -> bool:
    """Return True for a weight file or a folder with weights, False for a workdir."""
    if path.is_dir():
        return any((path / name).is_file() for name in (_WHOLE, _INDEX))
    return path.suffix in (".npz", ".safetensors")


def check_source(name: str) -> None:
    """Check the weights or workdir of ``init_from`` by headers and sizes only.

    Raises:
      InputError: the path is missing, has another format, or is incomplete.
    """
    path = Path(name)
    if is_weights(path):
        if not path.exists():
            raise _not_found(name)
        with _readable(path):
            _check_all(path)
            read_config(path)
        return
    workdir, checkpoint = workdir_lib.split_checkpoint(name)
    if not workdir.exists():
        raise _not_found(name)
    if not (workdir / "config.json").is_file():
        raise InputError(f"init_from: expected {EXPECTED}, found {name}")
    try:
        workdir_lib.read(workdir)
    except InputError as error:
        raise InputError(
            f"init_from: expected {EXPECTED}, found {name}, which has neither weights "
            "nor the config of a run in config.json"
        ) from error
    steps = checksums.step_folders(workdir / "checkpoints")
    if not steps or (
        workdir_lib.is_number(checkpoint) and int(checkpoint) not in steps
    ):
        raise InputError(
            f"init_from: expected a checkpoint in {workdir}, found steps {[*steps]}"
        )


def _not_found(name: str) -> InputError:
    return InputError(
        f"init_from: expected {EXPECTED}, found nothing at {name}. docs/pretrained.md "
        "lists sources of weights. --config.init_from= trains from scratch."
        + hub.hint("init_from", name)
    )


def read(path: Path) -> Stored:
    """Read weights after checking their headers and sizes.

    Args:
      path: a .npz, a .safetensors, or a folder with model.safetensors, either a single
        file or shards with an index.

    Returns:
      Arrays with the names and dtypes of the file.

    Raises:
      InputError: the file has another format or is incomplete; never unpickles.
    """
    with _readable(path):
        arrays: dict[str, np.ndarray] = {}
        parts = _check_all(path)
        for file in parts:
            arrays |= (
                npz_headers.read(file) if file.suffix == ".npz" else _read_safe(file)
            )
        digests = {file.name: checksums.sha256(file) for file in parts}
        return Stored(arrays, read_config(path), digests)


def write(
    arrays: Mapping[str, np.ndarray],
    folder: Path,
    *,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder in the format of Hugging Face's transformers.

    Raises:
      OSError: the disk is full or not writable.
    """
    if preprocessor is not None:
        write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "config.json", config)
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    temporary = folder / f"{_WHOLE}.tmp"
    try:
        save_file(contiguous, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    shutil.copymode(folder / "config.json", temporary)  # else owner-only
    publish(temporary, folder / _WHOLE)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    with replaced(path, "w") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_npz(arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write model.npz atomically."""
    with replaced(folder / "model.npz") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert errors of readers of damaged files to `InputError`."""
    try:
        with rust_explained(f"init_from: {path}: cannot be read"):
            yield
    except InputError:
        raise
    except MemoryError as e:
        raise InputError(
            f"init_from: {path}: expected weights that fit into memory, got larger "
            "ones. Free memory, or raise its limit."
        ) from e
    except (SafetensorError, *npz_headers.DAMAGE) as e:
        raise InputError(
            f"init_from: {path}: expected weights, found a truncated file or another "
            f"format: {e}"
        ) from e
    except (OSError, NotImplementedError, RuntimeError) as e:  # locked, encrypted
        raise InputError(f"init_from: {path}: cannot be read: {e}") from e


def _parts(path: Path) -> dict[Path, set[str] | None]:
    """Map each file to the names of arrays that it must contain; None: any names.

    Raises:
      InputError: the index is invalid, a shard is missing, or is a git-lfs pointer.
    """
    parts = _named_parts(path)
    for file in parts:
        lfs.check_not_pointer(file, "init_from")
    return parts


def _named_parts(path: Path) -> dict[Path, set[str] | None]:
    if path.is_file() or (path / _WHOLE).is_file():
        return {path if path.is_file() else path / _WHOLE: None}
    index = read_json(path / _INDEX, "init_from")
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"init_from: {path / _INDEX}: expected a weight_map")
    parts: dict[Path, set[str] | None] = {}
    for file in sorted({str(f) for f in names.values()}):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(
                f"init_from: {path / _INDEX}: expected files in its folder, found "
                f"{file!r}"
            )
        if not (path / file).is_file():
            raise InputError(f"init_from: {path}: expected {file}, found no such file")
        parts[path / file] = {name for name, where in names.items() if where == file}
    return parts


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json of weights; empty if a single file has none next to it.

    Raises:
      InputError: a folder lacks the file, or the file is not a JSON object.
    """
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    if path.suffix == ".npz" or (path.is_file() and not file.is_file()):
        return {}
    if not file.is_file():
        raise InputError(f"init_from: {path}: expected config.json, found none")
    return read_json(file, "init_from")


def _check_all(path: Path) -> list[Path]:
    """Return the weight files after checking headers and free memory."""
    parts = _parts(path)
    # The arrays of a .safetensors file are about as large as the file.
    sizes = sum(file.stat().st_size for file in parts if file.suffix != ".npz")
    memory.check_fits(sizes, f"init_from: {path}")
    for file, names in parts.items():
        _check_file(file, names)
    return list(parts)


def _check_file(path: Path, expected: set[str] | None) -> None:
    if path.suffix == ".npz":
        return npz_headers.check_headers(path, "init_from")
    # Opening compares the header with the size of the file.
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        if not names:
            raise InputError(f"init_from: {path}: expected arrays, found an empty file")
        if expected is not None and names != expected:
            different = ", ".join(sorted(names ^ expected)[:5])
            raise InputError(
                f"init_from: {path}: expected the arrays that the index lists, "
                f"found a difference in {different}"
            )
        for name in names:
            kind = file.get_slice(name).get_dtype()
            if kind not in _FLOATS and not name.endswith(_COUNTERS):
                raise InputError(
                    f"init_from: {path}: {name}: expected one of {', '.join(_FLOATS)}, "
                    f"found {kind}"
                )


def _read_safe(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
