"""Judgements are asked for once per judge, prompt and reply, by however many processes; and nothing
but the number is kept.
"""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from titer.data.tally import judge_calls
from titer.errors import MeasureError, StorageError
from titer.judges.cache import AT_ONCE, JudgementCache, judged
from titer.judges.judge import Judge

ASKED: list[tuple[str, str]] = []


class Length(Judge):
    """A tenth per letter of the reply; no judgement of a reply with a question mark."""

    name = "length"

    per_letter: float = 0.1

    def judge(self, pairs):
        ASKED.extend(pairs)
        return [None if "?" in r else min(1.0, self.per_letter * len(r)) for _, r in pairs]


@pytest.fixture(autouse=True)
def nothing_asked():
    ASKED.clear()


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    return JudgementCache(tmp_path / "judgements" if request.param == "disk" else None)


def said(*replies, prompt="p"):
    return [{"key": str(i), "prompt": prompt, "reply": r} for i, r in enumerate(replies)]


def test_a_second_pass_asks_nothing(cache):
    told = said("ab", "abcd", "ab", None)
    before = judge_calls()
    first = judged(Length(), told, cache)
    assert [t["judged"] for t in first] == [0.2, 0.4, 0.2, None]
    assert ASKED == [("p", "ab"), ("p", "abcd")]  # equal pairs once, no reply never
    assert judge_calls() - before == 2
    assert judged(Length(), told, cache) == first
    assert len(ASKED) == 2 and judge_calls() - before == 2
    assert all("judged" not in t for t in told)
    assert [{k: v for k, v in t.items() if k != "judged"} for t in first] == told


def test_another_judge_or_another_text_asks_again(cache):
    judged(Length(), said("ab"), cache)
    [other] = judged(Length(per_letter=0.2), said("ab"), cache)
    assert other["judged"] == 0.4 and len(ASKED) == 2
    judged(Length(), said("ab", prompt="q"), cache)
    assert ASKED[2:] == [("q", "ab")]
    [again] = judged(Length(), said("ab"), cache)
    assert again["judged"] == 0.2 and len(ASKED) == 3


def test_a_judgement_that_is_there_is_replaced(cache):
    """Transcripts that were judged by one judge can be judged by another."""
    [old] = judged(Length(), said("ab"), cache)
    [new] = judged(Length(per_letter=0.3), [old], cache)
    assert (old["judged"], new["judged"]) == (0.2, pytest.approx(0.6))


def test_what_could_not_be_judged_is_asked_again(cache):
    for _ in range(2):
        [told] = judged(Length(), said("a?"), cache)
        assert told["judged"] is None
    assert len(ASKED) == 2


def test_an_interrupted_pass_keeps_what_it_had(cache):
    class Stops(Length):
        def judge(self, pairs):
            if len(ASKED) >= AT_ONCE:
                raise KeyboardInterrupt
            return super().judge(pairs)

    told = said(*(f"{i:07d}" for i in range(AT_ONCE + 5)))
    with pytest.raises(KeyboardInterrupt):
        judged(Stops(), told, cache)
    assert len(ASKED) == AT_ONCE
    judged(Length(), told, cache)
    assert len(ASKED) == AT_ONCE + 5


@pytest.mark.parametrize("answer", [[], [0.5, 0.5], [1.5], [-0.1], [float("nan")], [True], ["1"]])
def test_a_judge_that_does_not_keep_to_its_contract(cache, answer):
    class Wild(Length):
        def judge(self, pairs):
            return answer

    with pytest.raises(MeasureError, match=r"one number per reply.*length"):
        judged(Wild(), said("ab"), cache)


def test_transcripts_without_replies_cannot_be_judged(cache):
    with pytest.raises(MeasureError, match="hold no replies"):
        judged(Length(), [{"key": "k", "logprobs": [-1.0]}], cache)


# -- on disk ---------------------------------------------------------------------------------------


def test_files_hold_the_number_alone_and_are_private(tmp_path):
    old = os.umask(0)
    try:
        judged(
            Length(),
            said("secretreply", "ab", prompt="secret prompt"),
            JudgementCache(tmp_path / "a/b"),
        )
    finally:
        os.umask(old)
    files = [f for f in (tmp_path / "a").rglob("*") if f.is_file()]
    assert sorted(json.loads(f.read_text()) for f in files) == [0.2, 1.0]
    for path in (tmp_path / "a").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o600 if path.is_file() else 0o700)
        assert "secret" not in str(path)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_a_folder_that_was_there_is_left_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    judged(Length(), said("ab"), JudgementCache(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o700}


@pytest.mark.parametrize("content", ["", "no number", "[0.5]", "2", "NaN", "true", '"0.5"'])
def test_a_damaged_file_is_asked_for_again_and_replaced(tmp_path, content):
    cache = JudgementCache(tmp_path)
    judged(Length(), said("ab"), cache)
    [file] = tmp_path.rglob("*.json")
    file.write_text(content)
    [told] = judged(Length(), said("ab"), cache)
    assert told["judged"] == 0.2 and len(ASKED) == 2
    assert json.loads(file.read_text()) == 0.2


def test_the_first_judgement_stays(tmp_path):
    one, two = JudgementCache(tmp_path), JudgementCache(tmp_path)
    assert one.put("judge", ("p", "r"), 0.25) == 0.25
    assert two.put("judge", ("p", "r"), 0.75) == 0.25
    assert one.get("judge", ("p", "r")) == two.get("judge", ("p", "r")) == 0.25
    assert not list(tmp_path.rglob("*.tmp"))


def test_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    cache = JudgementCache(tmp_path)
    assert cache.put("judge", ("p", "r"), 0.25) == cache.get("judge", ("p", "r")) == 0.25
    assert [f.suffix for f in tmp_path.rglob("*") if f.is_file()] == [".json"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        JudgementCache(tmp_path / "file" / "below").put("judge", ("p", "r"), 0.5)


def _hammer(folder, number, start, results):
    cache = JudgementCache(Path(folder))
    start.wait(30)
    kept = [cache.put("judge", ("p", str(i)), number) for i in range(200)]
    results.put(kept)


def test_two_processes_at_once_keep_one_judgement(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_hammer, args=(str(tmp_path / "new"), n, start, results))
        for n in (0.25, 0.75)
    ]
    for worker in workers:
        worker.start()
    start.set()
    first, second = (results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert first == second
    cache = JudgementCache(tmp_path / "new")
    assert [cache.get("judge", ("p", str(i))) for i in range(200)] == first
    assert not list(tmp_path.rglob("*.tmp"))
