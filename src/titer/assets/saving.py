"""Saving weights atomically, and their digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from titer.assets.checks import quiet

WEIGHTS_NOTE = "titer-weights.json"
"""File beside dequantised weights in the cache that holds their expected digest."""


def save_model(model: Any, tokenizer: Any, directory: str | Path) -> None:
    """Write weights (safetensors), configuration and tokenizer; `directory` appears whole or not at
    all.

    A directory that exists is replaced. Raises OSError if it cannot be written.
    """
    with quiet(), written_whole(Path(directory)) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A directory to fill; it becomes `target`, replacing what is there, only if the block ends
    without error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving it there is one step on the same file system.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(
                target, scratch / "old"
            )  # a directory that is not empty cannot be replaced in one move
        os.replace(fresh, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def weights_digest(model: Any) -> str:
    """sha256 (64 hex digits) over name, type, shape and bytes of every tensor of the state dict,
    sorted by name.

    Tied tensors count once by bytes and under each of their names; the device does not matter.
    About 1.4 GB/s.
    """
    total, seen = hashlib.sha256(), {}
    for name, tensor in sorted(model.state_dict().items()):
        where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or where not in seen:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            seen[where] = hashlib.sha256(flat.numpy()).hexdigest()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {seen[where]}\n".encode())
    return total.hexdigest()
