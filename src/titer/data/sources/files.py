"""The user's own text."""

from __future__ import annotations

import json
from pathlib import Path

from titer.assets.cache import sha256_of
from titer.data.examples import Example, SourceText
from titer.errors import StudyError

_TEXT_FIELDS = ("prompt", "response", "refusal", "domain", "system", "text")


def jsonl(*, path: str) -> SourceText:
    """One JSON object per line: prompt (or text), and optionally response, refusal, domain, system,
    choices, answer.

    UTF-8, with or without a byte order mark; any line ends. Raises StudyError naming file and line.
    """
    file = Path(path)
    try:
        # Not splitlines(): it also cuts at characters that may stand unescaped inside JSON text
        # (U+2028, U+0085 …).
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            "the text file cannot be read",
            field="options.path",
            value=path,
            expected="a UTF-8 JSONL file",
            remedy="check the path",
        ) from error
    examples = tuple(
        _example(line, f"{file.name}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not examples:
        raise StudyError(
            "the text file is empty",
            field="options.path",
            value=path,
            expected="one JSON object per line",
            remedy="add some",
        )
    return SourceText(
        examples, {"file": file.name, "sha256": sha256_of(file), "license": "the user's own"}
    )


def _example(line: str, where: str) -> Example:
    def wrong(what: str) -> StudyError:
        return StudyError(
            f"{where}: {what}",
            field="options.path",
            value=where,
            expected='an object such as {"prompt": "…", "response": "…"}',
            remedy="mend this line",
        )

    try:
        row = json.loads(line)
    except ValueError as error:
        raise wrong("not JSON") from error
    if not isinstance(row, dict):
        raise wrong("not an object")
    unknown = set(row) - {*_TEXT_FIELDS, "choices", "answer"}
    if unknown:
        raise wrong(f"unknown field {sorted(unknown)[0]!r}")
    if any(row.get(f) is not None and not isinstance(row[f], str) for f in _TEXT_FIELDS):
        raise wrong("a field that should be text is not")
    if not (row.get("prompt") or row.get("text")):
        raise wrong("neither prompt nor text")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise wrong("choices is not a list of texts")
    answer = row.get("answer")
    index = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)
    if not index and (choices or answer is not None):
        raise wrong(f"answer {answer!r} is not the index of a choice")
    if not _encodable([*choices, *(row.get(f) or "" for f in _TEXT_FIELDS)]):
        raise wrong("half of a surrogate pair, which is no character")
    fields = {f: row[f] for f in _TEXT_FIELDS if row.get(f) is not None}
    return Example(**fields, choices=tuple(choices), answer=answer, source="jsonl")


def _encodable(texts: list[str]) -> bool:
    """JSON can spell texts that UTF-8, and so hashes and files, cannot hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
