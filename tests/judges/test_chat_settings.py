"""Settings of the judge over HTTP: what is refused, and what its identity depends on."""

import urllib.request

import pytest

from titer.errors import StudyError
from titer.judges.http import ChatJudge

KEY = "sk-do-not-write-this-anywhere"


def judge(**settings):
    return ChatJudge(**{"base_url": "http://127.0.0.1:9/v1", "model": "m"} | settings)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/v1",
        "127.0.0.1:80",
        "http://",
        "http://host:port/v1",
        "",
        f"https://user:{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
    ],
)
def test_addresses_that_are_none(monkeypatch, url):
    monkeypatch.setattr(urllib.request, "build_opener", None)  # nothing may be opened
    with pytest.raises(StudyError, match="base_url") as error:
        ChatJudge(base_url=url, model="m")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"template": "only {prompt}"}, "template"),
        ({"template": "only {reply}"}, "template"),
        ({"pattern": "("}, "pattern"),
        ({"pattern": "(a)(b)"}, "pattern"),
        ({"low": 1.0, "high": 1.0}, "high"),
        ({"harmful": ["Yes"], "harmless": ["yes"]}, "harmful"),
    ],
)
def test_settings_that_make_no_sense(settings, field):
    with pytest.raises(StudyError, match=f"Field: {field} = "):
        judge(**settings)


def test_what_the_identity_depends_on():
    plain = judge().identity()
    assert len(plain) == 16 and plain == judge().identity()
    for aside in (
        {"timeout": 9},
        {"retries": 0},
        {"backoff": 3},
        {"concurrency": 1},
        {"key_variable": "OTHER_KEY"},
    ):
        assert judge(**aside).identity() == plain
    others = [
        {"model": "n"},
        {"base_url": "http://127.0.0.1:1/v1"},
        {"template": "{prompt}{reply}"},
        {"max_tokens": 3},
        {"answer": "json"},
        {"high": 2.0},
    ]
    assert len({plain, *(judge(**o).identity() for o in others)}) == 1 + len(others)
