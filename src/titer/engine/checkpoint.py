"""A rolling checkpoint of one running cell: safetensors for tensors, JSON for the rest, replaced
atomically.

Half-attacked weights are a hazard, so there is at most one per running cell, it is written at most
every `every_s` seconds, and it is deleted when the cell completes; orphans are purged at the next
start and by `titer clean`. A checkpoint is used only if both files match their checksums and were
written by the same versions of titer and torch: continuing from anything else could change the
numbers, starting over never does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from titer.errors import StorageError
from titer.records.files import storage_error
from titer.version import __version__

EVERY_S = 600.0


def pack(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a nested state into JSON (tensors replaced by {"__tensor__": name}) and a flat dict of
    tensors.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # Numbered, because names joined from keys need not be distinct: "a/b" and "b" within
            # "a".
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"__tensor__": name}
        if isinstance(value, dict):
            return {str(k): walk(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(v) for v in value]
        return value

    return walk(state), tensors


def unpack(skeleton: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of `pack` (tuples come back as lists)."""
    if isinstance(skeleton, dict):
        if set(skeleton) == {"__tensor__"}:
            return tensors[skeleton["__tensor__"]]
        return {k: unpack(v, tensors) for k, v in skeleton.items()}
    if isinstance(skeleton, list):
        return [unpack(v, tensors) for v in skeleton]
    return skeleton


class Rolling:
    """The checkpoint of one cell in `directory` (owned by it). every_s: least seconds between two
    writes.
    """

    def __init__(self, directory: Path, *, every_s: float = EVERY_S) -> None:
        self.directory, self.every_s = directory, every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every_s

    def write(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint. Raises StorageError; the one before survives a failure."""
        fresh = self.directory.with_name(self.directory.name + f".{os.getpid()}.new")
        old = self.directory.with_name(self.directory.name + ".old")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            _fill(fresh, state)
            shutil.rmtree(old, ignore_errors=True)
            if self.directory.exists():
                self.directory.rename(old)
            fresh.rename(self.directory)
        except SafetensorError as error:  # how safetensors reports that a file cannot be written
            raise StorageError(
                "a checkpoint could not be written",
                field="run directory",
                value=str(self.directory),
                expected="space on the disk",
                remedy="free space and give the same command again",
            ) from error
        except OSError as error:
            raise storage_error(error, self.directory) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The last checkpoint, or None if there is no valid one."""
        try:
            stored = json.loads((self.directory / "state.json").read_text("utf-8"))
            tensors = self.directory / "tensors.safetensors"
            if stored["seal"] != _seal(stored["state"], tensors):
                return None
            state: dict[str, Any] = unpack(stored["state"], load_file(tensors))
            return state
        except (
            Exception
        ):  # safetensors raises its own kinds; a damaged checkpoint only means starting over
            return None

    def delete(self) -> None:
        for path in self.directory.parent.glob(self.directory.name + "*"):
            shutil.rmtree(path, ignore_errors=True)


def _fill(directory: Path, state: dict[str, Any]) -> None:
    skeleton, tensors = pack(state)
    save_file(tensors, directory / "tensors.safetensors")
    skeleton = json.loads(json.dumps(skeleton))
    # The JSON is written last: without it the checkpoint does not exist.
    stored = {"seal": _seal(skeleton, directory / "tensors.safetensors"), "state": skeleton}
    (directory / "state.json").write_text(json.dumps(stored), "utf-8")


def _seal(skeleton: Any, tensors: Path) -> str:
    """sha256 over the versions that wrote the checkpoint and its content."""
    total = hashlib.sha256(f"{__version__} {torch.__version__}\n".encode())
    total.update(json.dumps(skeleton, sort_keys=True).encode())
    with tensors.open("rb") as file:
        total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
