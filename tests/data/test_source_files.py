"""The user's own files: every format and layout gives the same text, and what will not do is told
with its row.
"""

import csv
import json
import sys
from types import ModuleType

import pytest

from titer.data.sources import load_source
from titer.data.sources.files import own_text
from titer.errors import StudyError, TiterError

PAIRS = [('what, "is" é?\u2028', "this\nand that"), ("q 2", "a 2"), ("q 2", "again"), ("q 3", "a")]


def chat(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


LAYOUTS = {
    "pairs": [{"prompt": p, "response": r, "id": 1} for p, r in PAIRS],
    "alpaca": [{"instruction": p, "input": "", "output": r, "text": "whole"} for p, r in PAIRS],
    "chat": [{"messages": chat(p, r), "prompt": p, "prompt_id": "x"} for p, r in PAIRS],
}
IGNORED = {"pairs": ("id",), "alpaca": ("text",), "chat": ("prompt", "prompt_id")}


def as_jsonl(file, rows):
    file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", "utf-8")


def as_json(file, rows):
    file.write_text(json.dumps(rows, indent=1), "utf-8-sig")


def as_data(file, rows):
    file.write_text(json.dumps({"version": 1, "data": rows}))


def as_csv(file, rows):
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=file.stem[-1])
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    "a.jsonl": as_jsonl,
    "lines.json": as_jsonl,
    "lines.txt": as_jsonl,
    "a.json": as_json,
    "list.jsonl": as_json,
    "b.json": as_data,
    "comma,.csv": as_csv,
    "semicolon;.csv": as_csv,
    "tab\t.tsv": as_csv,
}


POSSIBLE = [(n, x) for n, w in WRITERS.items() for x in LAYOUTS if w is not as_csv or x != "chat"]
"""A chat is no cell of a table."""


@pytest.mark.parametrize(("name", "layout"), POSSIBLE)
def test_every_format_and_layout_says_the_same(tmp_path, name, layout):
    WRITERS[name](tmp_path / name, LAYOUTS[layout])
    text = load_source("file", {"path": str(tmp_path / name)})
    assert [(e.prompt, e.response) for e in text.examples] == PAIRS
    assert text.provenance["ignored"] == ", ".join(IGNORED[layout])
    found = own_text(tmp_path / name, field="x", needs=("response",))
    assert found.prompts == 3 and found.ignored == IGNORED[layout]
    assert found.path == tmp_path / name and found.format == text.provenance["format"]


def test_the_same_text_is_the_same_cell_whatever_its_format(tmp_path):
    as_jsonl(tmp_path / "a.jsonl", LAYOUTS["chat"])
    as_csv(tmp_path / "a,.csv", LAYOUTS["alpaca"])
    one, other = (
        load_source("file", {"path": str(tmp_path / n)}).examples for n in ("a.jsonl", "a,.csv")
    )
    assert one == other


def test_parts_of_a_row_that_a_method_may_want(tmp_path):
    rows = [
        {"instruction": "do", "input": "this", "output": "o", "refusal": "no", "domain": "d"},
        {
            "messages": [
                {"role": "system", "content": "s"},
                *chat([{"type": "text", "text": "hi"}], "there"),
                {"role": "user", "content": "more"},
            ],
            "refusal": "no",
        },
        {"messages": [{"role": "user", "content": "alone"}], "response": "beside"},
        {"prompt": "p", "choices": ["a", "b"], "answer": 1},
        {"prompt": "p", "response": "r", "answer": "Paris"},
        {"text": "running"},
    ]
    as_jsonl(tmp_path / "a.jsonl", rows)
    text = load_source("file", {"path": str(tmp_path / "a.jsonl")})
    first, second, third, fourth, fifth, sixth = text.examples
    assert (first.prompt, first.refusal, first.domain) == ("do\n\nthis", "no", "d")
    assert (second.system, second.prompt, second.refusal) == ("s", "hi", "no")
    assert (third.prompt, third.response) == ("alone", "beside")
    assert (fourth.choices, fourth.answer) == (("a", "b"), 1) and fifth.answer is None
    assert sixth.text == "running"
    assert text.provenance["ignored"] == "turns after the first answer, answer"


GOOD = b'{"prompt": "a", "response": "b"}'
ODD = {
    "empty.jsonl": (b"", "empty"),
    "blank.jsonl": (b"\n \n", "empty"),
    "emptylist.json": (b"[]", "empty"),
    "emptydata.json": (b'{"data": []}', "empty"),
    "empty.csv": (b"", "empty"),
    "rows.json": (b'{"rows": []}', "no prompt; its fields: rows"),
    "number.json": (b"3", "not an object"),
    "text.json": (b'"a"', "not an object"),
    "dict.json": (b'{"data": {"a": 1}}', "`data` is not a list"),
    "texts.json": (b'["a"]', "entry 1: not an object"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "cut.json": (b'[{"prompt": "a"}', "not JSON"),
    "cutlines.json": (b'{\n"prompt": "a",\n', "cutlines.json:3: not JSON"),
    "words.txt": (b"just words\n", "words.txt:1: not JSON"),
    "cut.jsonl": (GOOD + b"\nnot json\n", "cut.jsonl:2: not JSON"),
    "huge.jsonl": (b'{"prompt": ' + b"1" * 5000 + b"}", "not JSON"),
    "lack.jsonl": (GOOD + b'\n\n{"prompt": "c"}\n', "lack.jsonl:3: no response"),
    "null.jsonl": (b'{"prompt": "a", "response": null}', "no response"),
    "space.jsonl": (b'{"prompt": "a", "response": " "}', "no response"),
    "noprompt.jsonl": (b'{"response": "a"}', "no prompt"),
    "blankprompt.jsonl": (b'{"prompt": " ", "response": "a"}', "no prompt"),
    "three.jsonl": (b'{"prompt": 3, "response": "a"}', "should be text"),
    "surrogate.jsonl": (b'{"prompt": "\\ud83d", "response": "a"}', "surrogate"),
    "choice.jsonl": (b'{"prompt": "a", "choices": ["b"], "answer": 3}', "answer 3"),
    "chat.jsonl": (b'{"messages": "hi"}', "not a list of turns"),
    "chatdict.jsonl": (b'{"messages": {"role": "user"}}', "not a list of turns"),
    "chattexts.jsonl": (b'{"messages": ["hi"]}', "not a list of turns"),
    "chatempty.jsonl": (b'{"messages": []}', "begins with nothing"),
    "chatother.jsonl": (b'{"messages": [{"role": "assistant", "content": "a"}]}', "'assistant'"),
    "chatnumber.jsonl": (b'{"messages": [{"role": "user", "content": 3}]}', "not text"),
    "chatimage.jsonl": (b'{"messages": [{"role": "user", "content": [{"url": "x"}]}]}', "not text"),
    "alpaca.jsonl": (b'{"instruction": 3, "output": "a"}', "not text"),
    "columns.csv": (b"a,b\n1,2\n", "no prompt; its fields: a, b"),
    "header.csv": (b"prompt,response\n", "no rows under the header"),
    "quote.csv": (b'prompt,response\n"x,y\n', "not CSV"),
    "more.csv": (b"prompt,response\nx,y,z\n", "more.csv:2: 3 cells, but 2 columns"),
    "twice.csv": (b"prompt,prompt\nx,y\n", "two columns"),
    "lack.csv": (b"prompt,response\nx,y\nz,\n", "lack.csv:3: no response"),
    "latin.jsonl": ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8 (line 1"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "binary.csv": (bytes(range(1, 256)), "not UTF-8"),
    "packed.jsonl": (b"\x1f\x8b\x08\x00", "compressed"),
    "sheet.csv": (b"PK\x03\x04", "spreadsheet"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_will_not_do_is_told_with_its_row(tmp_path, name):
    body, said = ODD[name]
    (tmp_path / name).write_bytes(body)
    with pytest.raises(StudyError) as caught:
        own_text(tmp_path / name, field="--data", needs=("response",))
    error = caught.value
    assert said in error.problem and name in f"{error.problem} {error.value}"
    assert error.field == "--data" and error.expected


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    odd = {"absent.csv": "does not exist", ".": "is a directory", "loop": "", "a\0b": ""}
    for name, said in odd.items():
        with pytest.raises(StudyError, match=f"cannot be read: .*{said}") as caught:
            own_text(tmp_path / name, field="--data")
        assert caught.value.field == "--data"


def test_big_cells_and_odd_bytes_of_csv_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,response\n" + b"x" * 200_000 + b",y\nx\0,z\n")
    assert own_text(tmp_path / "a.csv", field="x").prompts == 2


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(TiterError, match=r"titer\[parquet\]"):
        own_text(tmp_path / "a.parquet", field="x")


def test_parquet_is_read_by_pyarrow(tmp_path, monkeypatch):
    """Without pyarrow itself, which tests do not need: what it is asked and what is made of it."""

    class Table:
        def __init__(self, source):
            assert source.read() == b"PAR1 rows"

        def to_pylist(self):
            return [{"messages": chat(p, r), "prompt": None, "n": 1} for p, r in PAIRS]

    pyarrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    pyarrow.ArrowException, pyarrow.parquet, parquet.read_table = ValueError, parquet, Table
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 rows")
    found = own_text(tmp_path / "a.parquet", field="x", needs=("response",))
    assert (found.prompts, found.format, found.ignored) == (3, "Parquet", ("prompt", "n"))
