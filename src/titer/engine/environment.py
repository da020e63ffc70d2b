"""Where a cell ran: recorded beside its result, never part of its digest."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from titer.records.record import Environment
from titer.version import __version__

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "gguf")


def environment(device: torch.device) -> Environment:
    """Versions, processor, device and threads of this process."""
    # The number of threads may change between two runs in one process; the rest does not, and is
    # slow to look up.
    return _unchanging(device).model_copy(update={"threads": torch.get_num_threads()})


@lru_cache(maxsize=4)
def _unchanging(device: torch.device) -> Environment:
    return Environment(
        titer=__version__,
        git=_git(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        packages={n: v for n in PACKAGES if (v := _version(n))},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> str | None:
    """Revision of the working copy titer is imported from, '+' if it has local changes; None
    outside one.
    """
    folder = Path(__file__).parents[1]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True
        )
        if head.returncode:
            return None
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True
        )
        return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except OSError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
