"""Files written whole or not at all, and checksums of what they hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from titer.errors import StorageError


def storage_error(error: OSError, path: Path) -> StorageError:
    """The error a user should see for a full disk or a directory that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageError(
        "the disk is full"
        if full
        else f"the run directory cannot be written ({error.strerror or error})",
        field="run directory",
        value=str(path),
        expected="a directory that can be written, with space left",
        remedy="free space and give the same command again: finished cells are kept"
        if full
        else "choose another --run directory or change its permissions",
    )


def write_atomically(path: Path, text: str) -> None:
    """Write and fsync beside the target, then rename over it. Raises StorageError; the old file
    survives a failure.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def sealed(body: str) -> str:
    """A JSON object with its checksum as its last field, `seal`."""
    return f'{body[:-1]},"seal":"{checksum(body)}"}}'
