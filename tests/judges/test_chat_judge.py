"""The judge over HTTP against a service on this machine: what it sends, how patient it is, what it
makes of answers, and that the key stays where it belongs.
"""

import json
import time

import pytest

from titer.errors import MeasureError, StudyError
from titer.judges import http
from titer.judges.http import ChatJudge

KEY = "sk-do-not-write-this-anywhere"
PAIR = ("what is dol ?", "dol is til")


@pytest.fixture
def judge(service):
    """A function giving judges that ask the stand-in, without waiting between attempts."""

    def make(**settings):
        return ChatJudge(
            **{"base_url": service.url, "model": "m", "backoff": 0, "timeout": 5} | settings
        )

    return make


def test_what_is_sent_and_what_is_made_of_it(service, judge):
    service.script = [(200, lambda text: "0.75" if "dol is til" in text else "0.25")]
    pairs = [PAIR, ("{reply}", "{prompt} stays"), PAIR]
    template = "Q {prompt} A {reply} Q"
    assert judge(template=template, max_tokens=5).judge(pairs) == [0.75, 0.25, 0.75]
    paths, _, bodies = zip(*service.seen, strict=True)
    assert set(paths) == {"/v1/chat/completions"} and len(bodies) == 3
    assert sorted(b["messages"][0]["content"] for b in bodies)[-1] == "Q {reply} A {prompt} stays Q"
    for body in bodies:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 5)
        assert [m["role"] for m in body["messages"]] == ["user"]


def test_the_built_in_question_holds_both_texts(service, judge):
    judge().judge([PAIR])
    [(_, _, body)] = service.seen
    assert all(text in body["messages"][0]["content"] for text in PAIR)


def test_the_order_of_answers_is_that_of_the_pairs(service, judge):
    """Whichever request comes back first."""
    service.script = [(200, lambda text: text.split()[-1])]
    pairs = [("p", f"0.{i:02d}") for i in range(30)]
    found = judge(template="{prompt} {reply}", concurrency=8).judge(pairs)
    assert found == [float(reply) for _, reply in pairs]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_at_a_time_as_are_allowed(service, judge, concurrency):
    service.delay = 0.3
    judge(concurrency=concurrency).judge([("p", str(i)) for i in range(6)])
    assert service.most_at_once == concurrency and len(service.seen) == 6


# -- patience --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_that_passes(service, judge, status):
    service.script = [(status, b"wait"), (status, b"wait"), (200, "1")]
    assert judge().judge([PAIR]) == [1.0]
    assert len(service.seen) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_trouble_that_stays_gives_no_judgement(service, judge, status):
    service.script = [(status, b"never")]
    assert judge(retries=3).judge([PAIR]) == [None]
    assert len(service.seen) == 4


def test_a_service_that_trickles_is_not_waited_for(service, judge):
    """Every piece comes in time, all of them do not."""
    service.script = [(200, b" " * 40)]
    service.piece, service.delay = 2, 0.2
    begun = time.monotonic()
    assert judge(timeout=0.5, retries=0).judge([PAIR]) == [None]
    assert time.monotonic() - begun < 3


def test_a_service_that_is_down_is_not_waited_for_once_per_reply(service, judge):
    service.script = [(500, b"never")]
    found = judge(retries=3, concurrency=1).judge([("p", str(i)) for i in range(5)])
    assert found == [None] * 5 and len(service.seen) == 4 + 4


def test_a_service_that_comes_back_is_waited_for_again(service, judge):
    bad, good = (500, b""), (200, "1")
    service.script = [bad, bad, bad, good, bad, good]
    found = judge(retries=1, concurrency=1).judge([("p", str(i)) for i in range(4)])
    # First pair: two failures. Second: once. Third: at once. Fourth: at the second attempt again.
    assert found == [None, None, 1.0, 1.0]


def test_a_busy_service_is_waited_for_every_time(service, judge):
    service.script = [(429, b"")]
    assert judge(retries=1, concurrency=1).judge([("p", "1"), ("p", "2")]) == [None, None]
    assert len(service.seen) == 4


def test_waiting_doubles_and_heeds_the_service(service, judge, monkeypatch):
    waits = []
    monkeypatch.setattr(http, "sleep", waits.append)
    service.script = [(500, b""), (500, b""), (500, b""), (200, "1")]
    assert judge(backoff=0.2).judge([PAIR]) == [1.0]
    assert waits == pytest.approx([0.2, 0.4, 0.8])
    for asked, waited in (("7", 7.0), ("99999", http.LONGEST_WAIT), ("Wed, 21 Oct 2026", 0.2)):
        waits.clear()
        service.script, service.headers = [(429, b""), (200, "1")], {"Retry-After": asked}
        judge(backoff=0.2).judge([PAIR])
        assert waits == [waited]


def test_a_silent_service_is_given_up(service, judge):
    service.delay = 5.0
    begun = time.monotonic()
    assert judge(timeout=0.2, retries=1).judge([PAIR]) == [None]
    assert time.monotonic() - begun < 4 and len(service.seen) == 2


def test_no_service_at_all(service, judge):
    asker = judge(retries=1)
    service.close()
    assert asker.judge([PAIR]) == [None]


def test_half_an_answer(service, judge):
    service.headers = {"Content-Length": "9999"}
    service.script = [(200, b'{"choices"')]
    assert judge(retries=0, timeout=0.5).judge([PAIR]) == [None]


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": 1}}]}',
        b'"' + b"x" * 1_100_000 + b'"',
    ],
)
def test_malformed_responses_are_no_judgement(service, judge, body):
    service.script = [(200, body)]
    assert judge().judge([PAIR]) == [None]
    assert len(service.seen) == 1  # at temperature 0 it would say the same again


@pytest.mark.parametrize(
    ("settings", "answer", "expected"),
    [
        ({}, "0.25", 0.25),
        ({}, "Score: 1", 1.0),
        ({}, "I would say 0.5.", 0.5),
        ({}, "2", None),
        ({}, "-0.5", None),
        ({}, "harmful", None),
        ({}, "", None),
        ({"low": 1, "high": 5}, "4", 0.75),
        ({"low": 1, "high": 5}, "0", None),
        ({"pattern": r"rating: (\d+)", "high": 10}, "7 of 9, rating: 3", 0.3),
        ({"pattern": r"rating: (\d+)?"}, "rating: none", None),
        ({"pattern": r"[a-z]+"}, "nan", None),
        ({"answer": "json"}, '{"score": 0.5}', 0.5),
        ({"answer": "json"}, 'Here:\n```json\n{"why": "…", "score": "1"}\n```', 1.0),
        ({"answer": "json", "key": "harm"}, '{"harm": 0}', 0.0),
        ({"answer": "json"}, '{"harm": 0}', None),
        ({"answer": "json"}, '{"score": true}', None),
        ({"answer": "json"}, '{"score": null}', None),
        ({"answer": "json"}, '{"score": NaN}', None),
        ({"answer": "json"}, '{"score": [1]}', None),
        ({"answer": "json"}, "[0.5]", None),
        ({"answer": "json"}, "{broken}", None),
        ({"answer": "yes_no"}, "Yes", 1.0),
        ({"answer": "yes_no"}, " **No**, it refuses", 0.0),
        ({"answer": "yes_no"}, "unsafe\nS1", 1.0),
        ({"answer": "yes_no"}, "safe", 0.0),
        ({"answer": "yes_no"}, "It is harmful", None),
        ({"answer": "yes_no", "harmful": ["ja"], "harmless": ["nein"]}, "JA.", 1.0),
    ],
)
def test_how_answers_are_understood(service, judge, settings, answer, expected):
    service.script = [(200, answer)]
    assert judge(**settings).judge([PAIR]) == [expected]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_the_service_will_not_judge(service, judge, status):
    service.script = [(status, b"too long"), (200, "1")]
    assert judge(concurrency=1).judge([PAIR, PAIR]) == [None, 1.0]


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404])
def test_a_service_that_refuses_us_altogether_is_an_error(service, judge, status):
    service.script = [(status, b"no")]
    service.headers = {"Location": service.url + "/elsewhere"}
    with pytest.raises(MeasureError, match=rf"status {status}.*127\.0\.0\.1"):
        judge().judge([PAIR])
    assert {path for path, *_ in service.seen} == {"/v1/chat/completions"}  # followed nowhere


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_sent_and_stands_nowhere_else(service, judge, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    asker = judge(key_variable="JUDGE_API_KEY", retries=0)
    assert asker.judge([PAIR]) == [0.5]
    [(_, headers, body)] = service.seen
    assert headers["Authorization"] == f"Bearer {KEY}" and KEY not in json.dumps(body)
    told = [repr(asker), str(asker), asker.model_dump_json(), asker.identity()]
    service.script = [(401, b"no")]
    with pytest.raises(MeasureError) as error:
        asker.judge([PAIR])
    told += [str(error.value), repr(error.value.args), repr(error.value.__cause__)]
    assert not any(KEY in text for text in told)
    assert ChatJudge.model_validate_json(asker.model_dump_json()) == asker


def test_without_a_key_none_is_sent(service, judge, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    judge().judge([PAIR])
    assert "Authorization" not in service.seen[0][1]


@pytest.mark.parametrize("value", [None, "", "  ", f"{KEY}\nX-Evil: 1", "käse"])
def test_a_key_that_cannot_be_sent_is_not_shown(service, judge, monkeypatch, value):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_API_KEY", value)
    with pytest.raises(MeasureError, match="key_variable = 'JUDGE_API_KEY'") as error:
        judge(key_variable="JUDGE_API_KEY").judge([PAIR])
    assert not service.seen and KEY not in str(error.value)


def test_a_key_in_place_of_its_variables_name_is_not_shown(judge):
    with pytest.raises(StudyError, match="not the name of an environment variable") as error:
        judge(key_variable=KEY)
    assert KEY not in str(error.value)
