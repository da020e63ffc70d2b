"""A helper the tests of commands import."""

from pathlib import Path


def record_files(run: Path) -> dict[str, tuple[int, bytes]]:
    """name → (when written, content) of every record of a run: a record done anew would differ in
    time.
    """
    return {
        f.name: (f.stat().st_mtime_ns, f.read_bytes())
        for f in sorted((run / "cells").glob("*.json"))
    }
