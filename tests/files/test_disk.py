"""Files are replaced atomically: temporary file, fsync, rename, fsync of the folder."""

import os

import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.files import disk


@pytest.fixture
def calls(monkeypatch):
    """Names of synced files and folders, and of renames, in order."""
    found = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(handle):
        found.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{handle}'))}")
        fsync(handle)

    def traced_replace(source, target):
        found.append(f"rename {source.name} to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_file_is_synced_before_its_rename(tmp_path, calls):
    disk.write_text(tmp_path / "a.txt", "caf\u00e9")
    assert (tmp_path / "a.txt").read_bytes() == "caf\u00e9".encode()
    assert calls == [
        "sync a.txt.tmp",
        "rename a.txt.tmp to a.txt",
        f"sync {tmp_path.name}",
    ]
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_folder_is_synced_with_its_files_before_its_rename(tmp_path, calls):
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "index.json").write_text("{}")
    disk.publish(tmp_path / "partial", tmp_path / "data")
    assert calls == [
        "sync index.json",
        "sync partial",
        "rename partial to data",
        f"sync {tmp_path.name}",
    ]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), disk.replaced(path, "w") as file:
        file.writelines(["half of the ne", 1])
    assert path.read_text() == "old"


def test_json_has_null_for_numbers_that_it_lacks():
    values = {"a": float("nan"), "b": [float("inf"), 1.5], "c": "x", "d": None}
    assert disk.json_ready(values) == {"a": None, "b": [None, 1.5], "c": "x", "d": None}


def test_a_git_lfs_pointer_in_place_of_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"init_from: .*git-lfs pointer"):
        disk.read_json(path, "init_from")
