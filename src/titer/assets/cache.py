"""Where fetched files are kept, and the locks that let only one process fetch a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from titer.errors import AssetError


def cache_dir() -> Path:
    """TITER_CACHE if set, else titer/ in the user's cache directory. Created on demand; AssetError
    if it cannot be.
    """
    chosen = (
        os.environ.get("TITER_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titer"
    )
    path = Path(chosen).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            "the cache directory cannot be made",
            field="TITER_CACHE",
            value=str(path),
            expected="a directory that can be written",
            remedy="set TITER_CACHE to one",
        ) from error
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Lock the cache entry `name`; other processes wait. The kernel unlocks it if this one dies."""
    with (cache_dir() / f".{name}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
