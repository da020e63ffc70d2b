"""Checks of a model's files that give clear errors, and a context that silences transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from titer.errors import AssetError


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings and progress bars; what matters is raised or recorded by
    titer.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def readable(what: str, where: object, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever the libraries raise on a bad model into one AssetError."""
    try:
        yield
    except (AssetError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise AssetError(
            f"{what} ({error.__class__.__name__}: {cause})",
            field="model",
            value=str(where),
            expected=expected,
            remedy=remedy,
        ) from error


def refuse(problem: str, where: object, expected: str, remedy: str | None = None) -> AssetError:
    return AssetError(problem, field="model", value=str(where), expected=expected, remedy=remedy)


def check_directory(path: Path) -> None:
    with readable("config.json cannot be read", path, "JSON", "save the model again"):
        named = (
            json.loads((path / "config.json").read_text("utf-8")).get("transformers_weights") or ""
        )
    files = sorted(path.glob("*.safetensors"))
    if not files or (named and not named.endswith((".safetensors", ".safetensors.index.json"))):
        pickled = (
            named or any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth"))
        )
        raise refuse(
            "the weights are pickled, which can run code"
            if pickled
            else "the directory has no weights",
            path,
            "weights as *.safetensors",
            "save it with safe_serialization=True where you trust it",
        )
    for file in files:
        check_safetensors(file)


def check_safetensors(path: Path) -> None:
    """Compare the size of a safetensors file with what its header promises. Raises AssetError if
    they differ.
    """
    size = path.stat().st_size
    whole = "a whole safetensors file"
    with readable(
        "the weights are truncated or damaged", path, whole, "copy or download the file again"
    ):
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(min(length, size)))
        promised = (
            8
            + length
            + max(
                (v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0
            )
        )
    if promised != size:
        raise refuse(
            "the weights are truncated or damaged",
            path,
            f"{promised} bytes as the header says; found {size}",
            "copy or download the file again",
        )
