"""Reads the user's own text files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.assets.cache import sha256_of
from titer.data.examples import Example, SourceText
from titer.data.sources.rows import Row, read_rows, unreadable, wrong
from titer.errors import StudyError
from titer.study.releaser import OwnText

_BESIDE = ("refusal", "domain", "system")
"""Text that may stand beside prompt and response in every layout."""
_TEXT_FIELDS = ("prompt", "response", *_BESIDE, "text")
LAYOUTS = (
    "`messages` (a chat), `prompt` and `response`, or `instruction`, `input` and `output` (Alpaca)"
)


def jsonl(*, path: str) -> SourceText:
    """One JSON object per line: prompt (or text), and optionally response, refusal, domain, system,
    choices, answer. Another field is an error.

    UTF-8, with or without a byte order mark; any line ends. Raises StudyError naming file and line.
    """
    _, rows = read_rows(Path(path), only_jsonl=True)
    examples = tuple(_strict(row) for row in rows)
    _refuse_empty(examples, path)
    return SourceText(examples, _origin(Path(path)))


def file(*, path: str) -> SourceText:
    """JSONL, JSON (a list, or {"data": a list}), CSV or Parquet, with `messages`, prompt and
    response, or Alpaca's columns. Further fields are ignored; the provenance says which.

    Raises StudyError naming file and row.
    """
    read = _read(Path(path))
    origin = {**_origin(Path(path)), "format": read.format, "ignored": ", ".join(read.ignored)}
    return SourceText(tuple(read.examples), origin)


def own_text(path: str | Path, *, field: str, needs: Iterable[str] = ()) -> OwnText:
    """What `releaser_study` has to know of a file: how many distinct prompts it holds, as pools
    tell them apart, and what of it is ignored.

    needs: what every row must have beside a prompt. field: how the user names the file. Raises
    StudyError.
    """
    whole = Path(path)
    try:
        whole = _resolved(whole)
        read = _read(whole)
        for where, example in zip(read.where, read.examples, strict=True):
            for need in ("prompt", *needs):
                if not (getattr(example, need) or "").strip():
                    raise wrong(where, f"no {need}", f"a {need} in every row, as {LAYOUTS}")
    except StudyError as error:
        raise StudyError(
            error.problem,
            field=field,
            value=error.value if str(whole) != error.value else str(path),
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    return OwnText(
        path=whole,
        prompts=len({e.key for e in read.examples}),
        format=read.format,
        ignored=read.ignored,
    )


def _resolved(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, no home, a NUL
        raise unreadable(path, str(error)) from error


@dataclass(frozen=True)
class _Read:
    format: str
    where: list[str]
    examples: list[Example]
    ignored: tuple[str, ...]


def _read(path: Path) -> _Read:
    form, rows = read_rows(path)
    ignored: dict[str, None] = {}
    examples = []
    for row in rows:
        fields, left = _laid_out(row)
        ignored |= dict.fromkeys(left)
        examples.append(_example(fields, row.where, "file"))
    _refuse_empty(examples, str(path))
    return _Read(form, [row.where for row in rows], examples, tuple(ignored))


def _refuse_empty(examples: Iterable[Example], path: str) -> None:
    if not examples:
        raise StudyError(
            "the text file is empty",
            field="options.path",
            value=path,
            expected=f"rows with {LAYOUTS}",
        )


def _origin(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_of(path), "license": "the user's own"}


# -- layouts --------------------------------------------------------------------------------------


def _laid_out(row: Row) -> tuple[dict[str, Any], list[str]]:
    """(fields of an example, what is ignored) of a row in any layout."""
    given = {k: v for k, v in row.fields.items() if v not in (None, "")}  # as an empty cell
    beside = {k: given[k] for k in _BESIDE if k in given}
    if "messages" in given:
        fields, further = _chat(given["messages"], row.where)
        used = {"messages"}
        if "response" in given and "response" not in fields:  # a chat that ends with the prompt
            fields["response"] = given["response"]
            used.add("response")
        fields = beside | fields
        left = ["turns after the first answer"] if further else []
    elif "prompt" not in given and "instruction" in given:
        fields, left = beside | _alpaca(given, row.where), []
        used = {"instruction", "input", "output"}
    elif "prompt" in given or "text" in given:
        fields = {k: given[k] for k in _TEXT_FIELDS if k in given}
        if isinstance(given.get("choices"), list):
            fields |= {k: given[k] for k in ("choices", "answer") if k in given}
        used, left = set(fields), []
    else:
        found = ", ".join(sorted(map(str, row.fields))[:12]) or "none"
        raise wrong(row.where, f"no prompt; its fields: {found}", LAYOUTS)
    return fields, [*left, *(k for k in row.fields if k not in used | beside.keys())]


def _alpaca(given: dict[str, Any], where: str) -> dict[str, Any]:
    """The input follows the instruction as a paragraph of its own."""
    parts = [given["instruction"], given.get("input", "")]
    if not all(isinstance(p, str) for p in parts):
        raise wrong(where, "instruction or input is not text")
    fields = {"prompt": "\n\n".join(p for p in parts if p.strip())}
    return fields | ({"response": given["output"]} if "output" in given else {})


def _chat(messages: Any, where: str) -> tuple[dict[str, Any], bool]:
    """(system, prompt and response of the first exchange, whether there is more)."""
    expected = 'a list such as [{"role": "user", "content": "…"}, {"role": "assistant", …}]'
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise wrong(where, "messages is not a list of turns", expected)
    turns = [(m.get("role"), _content(m.get("content"))) for m in messages]
    if any(content is None for _, content in turns):
        raise wrong(where, "the content of a turn is not text", expected)
    fields: dict[str, Any] = {}
    if turns and turns[0][0] in ("system", "developer"):
        fields["system"] = turns.pop(0)[1]
    for role, name in (("user", "prompt"), ("assistant", "response")):
        if turns and turns[0][0] == role:
            fields[name] = turns.pop(0)[1]
        elif name == "prompt":
            begins = repr(turns[0][0]) if turns else "nothing"
            raise wrong(where, f"the chat begins with {begins}, not with the user", expected)
    return fields, bool(turns)


def _content(value: Any) -> str | None:
    """The text of a turn, which some write as a list of parts; None if there is other content."""
    if isinstance(value, list):
        texts = [p.get("text") if isinstance(p, dict) else None for p in value]
        return "\n".join(texts) if all(isinstance(t, str) for t in texts) else None  # type: ignore[arg-type]
    return value if isinstance(value, str) else None


# -- examples -------------------------------------------------------------------------------------


def _strict(row: Row) -> Example:
    unknown = set(row.fields) - {*_TEXT_FIELDS, "choices", "answer"}
    if unknown:
        raise wrong(row.where, f"unknown field {sorted(unknown)[0]!r}")
    return _example(row.fields, row.where, "jsonl")


def _example(row: dict[str, Any], where: str, source: str) -> Example:
    if any(row.get(f) is not None and not isinstance(row[f], str) for f in _TEXT_FIELDS):
        raise wrong(where, "a field that should be text is not")
    if not (row.get("prompt") or row.get("text")):
        raise wrong(where, "neither prompt nor text")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise wrong(where, "choices is not a list of texts")
    answer = row.get("answer")
    index = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)
    if not index and (choices or answer is not None):
        raise wrong(where, f"answer {answer!r} is not the index of a choice")
    if not _encodable([*choices, *(row.get(f) or "" for f in _TEXT_FIELDS)]):
        raise wrong(where, "half of a surrogate pair, which is no character")
    fields = {f: row[f] for f in _TEXT_FIELDS if row.get(f) is not None}
    return Example(**fields, choices=tuple(choices), answer=answer, source=source)


def _encodable(texts: list[str]) -> bool:
    """JSON can encode text (lone surrogates) that UTF-8, and so hashes and files, cannot hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
