"""Cache of judgements: one number per judge, prompt and reply."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from titer.data.tally import count_judge_calls
from titer.errors import MeasureError, StorageError
from titer.judges.judge import Judge, Pair

AT_ONCE = 64
"""Pairs per call of a judge. Judgements are stored after each such batch, so that an interruption
loses at most one batch.
"""


class JudgementCache:
    """directory: one JSON file per judgement, `identity/xx/digest.json`, readable by its owner
    alone; None: in memory. It holds numbers, never text.

    Several processes may share a directory: a file appears whole, and the first one stays, so that
    all of them use the same judgement.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._memory: dict[tuple[str, str], float] = {}

    def get(self, identity: str, pair: Pair) -> float | None:
        """The judgement, or None if there is none yet or its file is damaged."""
        key = _key(pair)
        if self.directory is None:
            return self._memory.get((identity, key))
        return _stored(_file(self.directory, identity, key))

    def put(self, identity: str, pair: Pair, value: float) -> float:
        """Store a judgement in [0, 1] unless one exists; returns the stored one. Raises
        StorageError if it cannot be written.
        """
        key = _key(pair)
        if self.directory is None:
            return self._memory.setdefault((identity, key), value)
        file = _file(self.directory, identity, key)
        try:
            _private_folder(file.parent)
            return _write_first(file, value)
        except OSError as error:
            raise StorageError(
                f"a judgement cannot be written ({error.strerror or error})",
                field="judgements",
                value=str(self.directory),
                expected="a directory that can be written",
            ) from error


def _file(directory: Path, identity: str, key: str) -> Path:
    return directory / identity / key[:2] / f"{key}.json"


def _key(pair: Pair) -> str:
    prompt, reply = pair
    return hashlib.sha256(f"{prompt}\0{reply}".encode("utf-8", "surrogatepass")).hexdigest()


def _stored(file: Path) -> float | None:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return float(value) if _is_judgement(value) else None


def _is_judgement(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def _private_folder(folder: Path) -> None:
    """Create a folder and its parents, readable by the owner alone (0700)."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with suppress(FileExistsError):  # another process created it first
            made.mkdir(mode=0o700)
            made.chmod(0o700)  # whatever the umask says


def _write_first(file: Path, value: float) -> float:
    """Write the value atomically unless an intact one exists; returns the stored one."""
    handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(handle, "w") as out:
            json.dump(value, out)
        try:
            os.link(scratch, file)  # fails if there is one already
        except FileExistsError:
            stored = _stored(file)
            if stored is not None:
                return stored
            os.replace(scratch, file)  # it is damaged
        except OSError:  # a file system without hard links
            os.replace(scratch, file)
        return value
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)


def judged(
    judge: Judge, transcripts: Sequence[dict[str, Any]], cache: JudgementCache
) -> list[dict[str, Any]]:
    """Copies of the transcripts with `judged`: how harmful the reply is in [0, 1], or None if there
    is no reply or no judgement of it. Pairs that are not cached are judged, each once, and counted.
    A failed judgement is not stored: the next pass asks again. Raises MeasureError if a transcript
    holds no prompt and reply, or the judge's answer is not one number in [0, 1] or None per pair.
    """
    pairs = [_pair(t) for t in transcripts]
    identity = judge.identity()
    known: dict[Pair, float | None] = {}
    for pair in filter(None, pairs):
        if pair not in known:
            known[pair] = cache.get(identity, pair)
    unknown = [pair for pair, value in known.items() if value is None]
    for start in range(0, len(unknown), AT_ONCE):
        some = unknown[start : start + AT_ONCE]
        for pair, answer in zip(some, _asked(judge, some), strict=True):
            if answer is not None:
                known[pair] = cache.put(identity, pair, answer)
    return [
        {**t, "judged": None if pair is None else known[pair]}
        for t, pair in zip(transcripts, pairs, strict=True)
    ]


def _asked(judge: Judge, pairs: Sequence[Pair]) -> list[float | None]:
    count_judge_calls(len(pairs))
    answers = judge.judge(pairs)
    if len(answers) != len(pairs) or not all(a is None or _is_judgement(a) for a in answers):
        raise MeasureError(
            "the judge did not answer with one number per reply",
            field="judge",
            value=judge.name,
            expected=f"{len(pairs)} numbers in [0, 1], or None where there is none",
        )
    return [None if a is None else float(a) for a in answers]


def _pair(transcript: dict[str, Any]) -> Pair | None:
    if "prompt" not in transcript or "reply" not in transcript:
        raise MeasureError(
            "the transcripts hold no replies to judge",
            field="transcripts",
            value=sorted(transcript),
            expected="prompt and reply in each, as the request Generate gives them",
        )
    reply = transcript["reply"]
    return None if reply is None else (transcript["prompt"], reply)
