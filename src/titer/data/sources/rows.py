"""Rows of the user's own files, whatever their format: JSONL, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.errors import StudyError

FORMATS = "a JSONL, JSON, CSV or Parquet file; text in UTF-8"
EXAMPLE = 'an object such as {"prompt": "…", "response": "…"}'
_OTHER = {
    b"\x1f\x8b": "it is compressed (gzip); unpack it first",
    b"PK\x03\x04": "it is a zip archive or a spreadsheet; export it as CSV",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8",
    b"ARROW1": "it is an Arrow file; save it as Parquet",
    b"SQLite format 3": "it is a database; export it as CSV",
}
"""First bytes of files that are often taken for one that can be read."""
_PARQUET = b"PAR1"
_LAID_OUT = {"messages", "prompt", "instruction", "text"}
"""One of these is in every row."""
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row: where it stands, for messages, and what it says."""

    where: str
    fields: dict[str, Any]


def read_rows(file: Path, *, only_jsonl: bool = False) -> tuple[str, list[Row]]:
    """(format, rows) of a file. The format is told by its content, and for CSV by its name.

    only_jsonl: whatever it is called, every line is an object. Raises StudyError naming file and
    row.
    """
    body = _bytes(file)
    if body.startswith(_PARQUET) or (not only_jsonl and file.suffix in (".parquet", ".pq")):
        return "Parquet", list(_parquet(file, body))
    text = _text(file, body)
    suffix = file.suffix.casefold()
    if only_jsonl:
        return "JSONL", list(_lines(file, text))
    if suffix in (".csv", ".tsv"):
        return suffix[1:].upper(), list(_cells(file, text, "\t" if suffix == ".tsv" else ""))
    whole = _whole(file, text)
    if whole is not None:
        return "JSON", list(_entries(file, whole))
    return "JSONL", list(_lines(file, text))


def wrong(where: str, what: str, expected: str = EXAMPLE) -> StudyError:
    """The complaint about one row."""
    return StudyError(
        f"{where}: {what}",
        field="options.path",
        value=where,
        expected=expected,
        remedy="correct the row, or remove it",
    )


def unreadable(file: Path, why: str, remedy: str | None = None) -> StudyError:
    """The complaint about a whole file."""
    return StudyError(
        f"the text file cannot be read: {why}",
        field="options.path",
        value=str(file),
        expected=FORMATS,
        remedy=remedy,
    )


def _bytes(file: Path) -> bytes:
    try:
        body = file.read_bytes()
    except FileNotFoundError as error:
        raise unreadable(file, "it does not exist") from error
    except IsADirectoryError as error:
        raise unreadable(file, "it is a directory", "name the file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise unreadable(file, getattr(error, "strerror", None) or str(error)) from error
    for start, why in _OTHER.items():
        if body.startswith(start):
            what, _, remedy = why.partition("; ")
            raise unreadable(file, what, remedy or None)
    return body


def _text(file: Path, body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        why = f"it is not UTF-8 (line {line}, byte {error.start})"
        raise unreadable(file, why, "save it as UTF-8") from error


def _json(text: str) -> Any:
    """Raises ValueError, also where the nesting is deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _lines(file: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): it also cuts at characters that may stand unescaped inside JSON text
    # (U+2028, U+0085 …).
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            row = _json(line)
        except ValueError as error:
            raise wrong(where, "not JSON") from error
        yield Row(where, _object(where, row))


def _whole(file: Path, text: str) -> Any:
    """The file as one JSON value; None if it is lines of them, or nothing. Raises StudyError if it
    begins as one value and does not end so.
    """
    begins = text.lstrip()[:1]
    if begins not in ("[", "{"):
        return None
    first, _, further = text.strip().partition("\n")
    try:
        value = _json(first)
    except ValueError:  # one value over several lines, or a damaged line
        pass
    else:
        one = begins == "[" or ("data" in value and not _LAID_OUT & value.keys())
        return value if one and not further else None
    try:
        return _json(text)
    except ValueError as error:
        if begins == "{" and file.suffix.casefold() in (".jsonl", ".ndjson"):
            return None  # whose lines say what is wrong
        line = getattr(error, "lineno", None)
        where = f"{file.name}:{line}" if line else file.name
        why = f"not JSON ({getattr(error, 'msg', error)})"
        expected = 'a list of objects, {"data": […]}, or one object per line'
        raise wrong(where, why, expected) from error


def _entries(file: Path, whole: Any) -> Iterator[Row]:
    if isinstance(whole, dict) and "data" not in whole:
        whole = [whole]
    rows = whole["data"] if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        raise wrong(file.name, "`data` is not a list", 'a list of objects, or {"data": […]}')
    for number, row in enumerate(rows, 1):
        where = f"{file.name}, entry {number}"
        yield Row(where, _object(where, row))


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise wrong(where, "not an object")
    return row


def _cells(file: Path, text: str, delimiter: str) -> Iterator[Row]:
    """Rows of a CSV file with a header; an empty cell says nothing."""
    header = text.split("\n", 1)[0]
    delimiter = delimiter or next((d for d in ",;\t" if d in header), ",")
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        if twice := next((c for c in columns if c and columns.count(c) > 1), None):
            raise wrong(f"{file.name}:1", f"two columns are called {twice!r}", "distinct columns")
        found = False
        for cells in reader:
            where = f"{file.name}:{reader.line_num}"
            if len(cells) > len(columns):
                what = f"{len(cells)} cells, but {len(columns)} columns"
                raise wrong(where, what, "quotes around text with a comma in it")
            fields = {c: v for c, v in zip(columns, cells, strict=False) if c and v.strip()}
            if fields:
                found = True
                yield Row(where, fields)
        if columns and not found:
            what = f"no rows under the header {', '.join(columns)[:200]!r}"
            raise wrong(f"{file.name}:1", what, "a line of column names, then the rows")
    except csv.Error as error:
        raise wrong(f"{file.name}:{reader.line_num}", f"not CSV ({error})", "CSV") from error
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, body: bytes) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StudyError(
            "reading Parquet needs the package pyarrow, which is not installed",
            field="options.path",
            value=str(file),
            expected="pyarrow, or the same text as JSONL or CSV",
            remedy="pip install 'titer[parquet]'",
        ) from error
    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(body)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise unreadable(file, f"not Parquet ({why})", "write it again") from error
    for number, fields in enumerate(rows, 1):
        yield Row(f"{file.name}, row {number}", fields)
