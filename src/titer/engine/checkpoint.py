"""A rolling checkpoint of one running cell: safetensors for tensors, JSON for the rest, replaced atomically.

Half-attacked weights are a hazard, so there is at most one per running cell, it is written no oftener than every
`every_s` seconds, and it is deleted when the cell completes; orphans are purged at the next start and by `titer clean`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EVERY_S = 600.0


def pack(state: Any, prefix: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a nested state into JSON (tensors replaced by {"__tensor__": name}) and a flat dict of tensors."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"__tensor__": path}
        if isinstance(value, dict):
            return {str(k): walk(v, f"{path}/{k}") for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        return value

    return walk(state, prefix or "s"), tensors


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
    """The checkpoint of one cell in `directory` (owned by it). every_s: least seconds between two writes."""

    def __init__(self, directory: Path, *, every_s: float = EVERY_S) -> None:
        self.directory, self.every_s = directory, every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every_s

    def write(self, state: dict[str, Any]) -> None:
        skeleton, tensors = pack(state)
        fresh = self.directory.with_name(self.directory.name + f".{os.getpid()}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(tensors, fresh / "tensors.safetensors")
        # The JSON is written last: without it the checkpoint does not exist.
        (fresh / "state.json").write_text(json.dumps(skeleton), "utf-8")
        old = self.directory.with_name(self.directory.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(old)
        fresh.rename(self.directory)
        shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The last checkpoint, or None if there is none that can be believed."""
        try:
            skeleton = json.loads((self.directory / "state.json").read_text("utf-8"))
            return unpack(skeleton, load_file(self.directory / "tensors.safetensors"))
        except Exception:  # safetensors raises its own kinds; a damaged checkpoint only means starting over
            return None

    def delete(self) -> None:
        for path in self.directory.parent.glob(self.directory.name + "*"):
            shutil.rmtree(path, ignore_errors=True)
