"""What each request is answered with, against the functions it stands on and by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch

from helpers.plain import answer_nll, greedy
from titer.data.examples import Example
from titer.data.wording import Wording
from titer.errors import MeasureError
from titer.measures.ask import ask
from titer.measures.requests import Generate, Openings, Read, Score, wrapped

AROUND = "please {prompt}"
EACH = [Generate(5, AROUND), Score("response", AROUND), Openings(("Sure", "I cannot"), AROUND)]


def test_replies(unsure, mixed):
    bundle = unsure()
    told = ask(bundle, mixed, Generate(5, AROUND))
    for example, t in zip(mixed, told, strict=True):
        ids = greedy(bundle, bundle.prompt(wrapped(example, AROUND)), 5)
        assert t == {
            "key": example.key,
            "prompt": f"please {example.prompt}",
            "reply": bundle.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        }


@pytest.mark.parametrize("answers", ["response", "refusal"])
@pytest.mark.parametrize("wrap", ["{prompt}", AROUND])
def test_answers(unsure, mixed, answers, wrap):
    bundle = unsure()
    for example, t in zip(mixed, ask(bundle, mixed, Score(answers, wrap)), strict=True):
        row = bundle.encode(wrapped(example, wrap), getattr(example, answers))
        expected = [-x for x in answer_nll(bundle, row.prompt, row.response)]
        assert t["logprobs"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert t.keys() == {"key", "logprobs", "matched"} and len(t["matched"]) == len(expected)
        assert t["key"] == example.key


def test_choices(unsure, mixed):
    bundle = unsure()
    asked = [
        replace(e, choices=(e.response, e.refusal, "til")[: 2 + i % 2], answer=i % 2)
        for i, e in enumerate(mixed)
    ]
    for example, t in zip(asked, ask(bundle, asked, Score("choices", AROUND)), strict=True):
        assert (t["key"], t["answer"]) == (example.key, example.answer)
        alone = [
            ask(bundle, [replace(example, response=c)], Score("response", AROUND))[0]
            for c in example.choices
        ]
        assert [o["matched"] for o in t["options"]] == [a["matched"] for a in alone]
        for option, one in zip(t["options"], alone, strict=True):
            assert option["logprobs"] == pytest.approx(one["logprobs"], rel=1e-4, abs=1e-5)


def test_running_text(unsure, texts):
    bundle = unsure()
    for example, t in zip(texts, ask(bundle, texts, Read(9)), strict=True):
        ids = bundle.tokenizer(example.text, add_special_tokens=False)["input_ids"][:9]
        expected = [-x for x in answer_nll(bundle, ids[:1], ids[1:])]
        assert t["logprobs"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert t["key"] == example.key and len(t["matched"]) == len(ids) - 1


def test_openings(unsure, mixed):
    bundle, names = unsure(), ("Sure", "I cannot", "til kel bil")
    ids = [bundle.tokenizer(n, add_special_tokens=False)["input_ids"] for n in names]
    for example, t in zip(mixed, ask(bundle, mixed, Openings(names, AROUND)), strict=True):
        prompt = bundle.prompt(wrapped(example, AROUND))
        expected = [-math.fsum(answer_nll(bundle, prompt, o)) for o in ids]
        assert t["openings"] == pytest.approx(expected, rel=1e-4, abs=1e-3)
        assert t["tokens"] == [len(o) for o in ids] and t["key"] == example.key


@pytest.mark.parametrize("request_", EACH)
def test_the_model_is_asked_in_its_own_words(unsure, mixed, request_):
    """Wording belongs to the model and goes around what the measure asks."""
    bundle = unsure()
    worded = bundle.having(wording=Wording(system="be polite", wrapper="dol {prompt} dal"))
    bare = [replace(e, system=None) for e in mixed]
    by_hand = [replace(e, prompt=f"dol please {e.prompt} dal", system="be polite") for e in bare]
    found = ask(worded, bare, request_)
    expected = ask(bundle, by_hand, replace(request_, wrap="{prompt}"))
    for a, b in zip(found, expected, strict=True):
        same = {k for k in a if k not in ("key", "prompt")}
        assert {k: a[k] for k in same} == {k: b[k] for k in same}
    plain = ask(bundle, bare, request_)
    assert [t["key"] for t in found] == [e.key for e in bare] == [t["key"] for t in plain]
    assert found != plain


@pytest.mark.parametrize("request_", [*EACH, Read(9), Score("choices")])
def test_a_model_of_no_numbers_tells_none_of_them_in_plain_json(new_bundle, mixed, texts, request_):
    bundle = new_bundle()
    with torch.no_grad():
        bundle.model.model.norm.weight.fill_(float("nan"))
    asked = [
        replace(e, choices=("til", "kel"), answer=0, text=t.text)
        for e, t in zip(mixed, texts, strict=False)
    ]
    told = ask(bundle, asked, request_)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    for t in told:
        found = t.get("reply", t.get("logprobs", t.get("openings", t.get("options"))))
        if isinstance(request_, Score) and request_.answers == "choices":
            found = [lp for option in found for lp in option["logprobs"]]
        assert found is None or set(found) == {None}


def test_the_model_is_in_evaluation_mode_and_left_as_it_was(new_bundle, harm):
    bundle = new_bundle()
    bundle.model.train()
    seen = []
    bundle.model.register_forward_hook(
        lambda module, *_: seen.append((module.training, torch.is_grad_enabled()))
    )
    for request in EACH:
        ask(bundle, harm[:2], request)
    assert set(seen) == {(False, False)} and bundle.model.training


def test_no_examples_no_transcripts(new_bundle):
    for request in (*EACH, Read(9), Score("choices")):
        assert ask(new_bundle(), [], request) == []


FULL = Example(
    prompt="dol", text="dol dal", response="til", refusal="no", choices=("a", "b"), answer=1
)


@pytest.mark.parametrize(
    "request_", [Generate(2), *map(Score, ("response", "refusal", "choices")), Read(4), EACH[2]]
)
def test_what_is_needed_is_what_is_missed(new_bundle, request_):
    """An example with all that the request needs is enough; one without any of it is refused."""
    bundle = new_bundle()
    enough = Example(**{need: getattr(FULL, need) for need in request_.needed()})
    assert len(ask(bundle, [enough, enough], request_)) == 2
    for need in request_.needed():
        lacking = replace(FULL, **{need: getattr(Example(), need)})
        with pytest.raises(MeasureError, match=f"an example has no {need}"):
            ask(bundle, [FULL, lacking], request_)


def test_requests_with_equal_settings_are_equal():
    assert Generate(5) == Generate(5, "{prompt}") and hash(Generate(5)) == hash(Generate(5))
    assert Generate(5) != Generate(6) != Generate(6, AROUND)
    assert Score("response") != Score("refusal") and Read(4) != Read(5)


def test_prompts_that_a_template_makes_one_text_of_are_refused(new_bundle, harm):
    """n readings of one question would pass for n questions."""
    bundle = new_bundle()
    deaf = Wording(template="{{ 'the same' }}{% for m in messages %}{% endfor %}")
    with pytest.raises(MeasureError, match="one text of 5 different prompts"):
        ask(bundle.having(wording=deaf), harm[:5], Score("response"))
    assert ask(bundle, harm[:5], Score("response"))
    assert ask(bundle.having(wording=deaf), harm[:1], Score("response"))
