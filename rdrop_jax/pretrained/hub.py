"""Weights of the Hugging Face Hub as folders of its cache. Needs no jax."""

import functools
import logging
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.training import workdir as workdir_lib

_FIELD = "init_from"
# Weights without pickle, their config and their tokenizer; nothing else is fetched.
FILES = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "source.spm",
    "target.spm",
)
_logger = logging.getLogger(__name__)


def located(config: ConfigDict, workdir: Path | None = None) -> ConfigDict:
    """Replace ``init_from=hf:...`` by the folder of the downloaded weights.

    Args:
      config: config of the run.
      workdir: folder of the run; the commit that it records is used again.

    Returns:
      A locked copy, or the config itself if ``init_from`` is no name of the Hub.

    Raises:
      InputError: the weights cannot be downloaded; nothing incomplete is returned.
    """
    if not hub.is_name(config.init_from):
        return config
    found = (workdir and workdir_lib.recorded_init(config, workdir)) or {}
    same = found.get("from") == config.init_from
    commit = str(found.get("commit", "")) if same else ""
    local = config.copy_and_resolve_references().unlock()
    local.init_from = str(snapshot(config.init_from, commit))
    return local.lock()


def commit_of(config: ConfigDict) -> str:
    """Return the commit of the weights of a `located` config; "" for other weights."""
    path = Path(config.init_from)
    return path.name if path.parent.name == "snapshots" else ""


@functools.cache
def snapshot(text: str, commit: str = "") -> Path:
    """Download the weights of a repository, or find them in the cache of the Hub.

    ``huggingface_hub`` downloads, and reads HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. The
    result is the same for the lifetime of the process.

    Args:
      text: ``hf:ORG/NAME[@REVISION]``.
      commit: commit to use instead of the revision; "" uses the revision.

    Returns:
      Folder of the files; its name is the commit.

    Raises:
      InputError: one line with the cause and the remedy.
    """
    name = hub.parse(_FIELD, text)
    with hub.explained(_FIELD, text, name):
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                name.repo,
                revision=commit or name.revision or None,
                allow_patterns=list(FILES),
            )
        )
        hub.check_content(_FIELD, text, folder)
    if not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{_FIELD}: {text}: expected weights in model.safetensors, found none. "
            "Files with pickles, such as pytorch_model.bin, are not read, because "
            "they can run code. Convert them, or name a revision with safetensors, "
            "such as @refs/pr/1"
        )
    _logger.info("%s: %s, commit %s", _FIELD, text, folder.name)
    return folder
