"""Which files make a model directory, by content: exactly those that are read when it is loaded."""

from __future__ import annotations

import hashlib
import json
import stat
from functools import lru_cache
from pathlib import Path

from titer.assets.checks import readable, refuse

SUFFIXES = (".json", ".safetensors", ".jinja", ".model", ".gguf", ".txt", ".py")
FOLDERS = ("additional_chat_templates",)
"""Folders beside the weights that transformers reads."""


def manifest(directory: Path) -> dict[str, str]:
    """Relative name → sha256 (64 hex digits) of every file of a model directory.

    Raises AssetError if a file is not a regular one, or if an index of weights names anything but
    safetensors in the directory itself: that would be loaded, and be no part of the identity.
    """
    files = {
        str(file.relative_to(directory)): file
        for folder in (directory, *(directory / name for name in FOLDERS))
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix in SUFFIXES and not file.is_dir()
    }
    for name, file in files.items():
        if name.endswith(".index.json"):
            _check_index(file, directory)
    return {name: file_digest(file) for name, file in files.items()}


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a regular file, computed again when its size, times or place on the
    disk change. Raises AssetError if it is none.
    """
    with readable("a file of the model cannot be read", path, "a readable file", ""):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise refuse("this is not a regular file", path, "a file", "")
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _digest(path, state)


@lru_cache(maxsize=4096)
def _digest(path: Path, state: tuple[int, ...]) -> str:
    cannot = "a file of the model cannot be read"
    with readable(cannot, path, "a readable file", ""), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_index(index: Path, directory: Path) -> None:
    with readable("an index of weights cannot be read", index, "JSON with a weight_map", ""):
        named = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
    for name in sorted(map(str, named)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise refuse(
                "an index of weights names a file that is not read",
                f"{index}: {name}",
                f"*.safetensors files in {directory}",
                "copy the weights into the directory and save the index again",
            )
        if not (directory / name).is_file():
            raise refuse(
                "an index of weights names a file that is missing",
                f"{index}: {name}",
                "every file it names",
                "copy or download the model again",
            )
