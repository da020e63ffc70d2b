"""One model is asked once for what several measures want; judges come after it; stored transcripts
are read again without it.
"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from titer.data.examples import digest_of
from titer.data.wording import Wording
from titer.engine.prober import BoundMeasure, Prober, rescore
from titer.errors import MeasureError
from titer.judges.cache import JudgementCache
from titer.judges.judge import Judge
from titer.measures import ask as asking
from titer.measures.compliance import ComplianceGenerated, ComplianceLikelihood, RefusalRate
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import read
from titer.measures.requests import Own
from titer.study.cell import CellMeasure, PartUse

CALLS: Counter = Counter()


class Vowels(Judge):
    """Counts how often it is asked; judges by the share of a letter."""

    name = "vowels"

    letter: str = "a"

    def judge(self, pairs):
        CALLS["judge"] += len(pairs)
        return [reply.count(self.letter) / max(1, len(reply)) for _, reply in pairs]


class Judged(ComplianceGenerated):
    """Share of replies a judge finds more than a tenth harmful."""

    name = "judged_by_vowels"

    letter: str = "a"

    def judge(self):
        return Vowels(letter=self.letter)

    def score(self, transcripts):
        return [float(t["judged"] > 0.1) for t in transcripts]


class Collecting(ExactAnswer):
    """Runs the model itself, and is careless about it."""

    name = "collecting"

    tag: str = ""

    def request(self):
        return Own()

    def collect(self, bundle, examples):
        CALLS[f"collect {self.tag}"] += 1
        assert not bundle.model.training and not torch.is_grad_enabled()
        bundle.model.train()
        torch.set_grad_enabled(True)
        return [{"key": e.key, "logprobs": [-1.0], "matched": [True]} for e in examples]


def bind(label, measure, examples):
    spec = CellMeasure(
        label=label,
        name=measure.name,
        version=measure.version,
        settings=measure.model_dump(mode="json"),
        text=PartUse(part="harm/judge", content="c"),
    )
    return BoundMeasure(spec, measure, examples, digest_of(examples))


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Generations and likelihood passes, counted where requests are answered."""
    CALLS.clear()
    for name in ("generate", "answer_logprobs", "opening_logprobs"):
        real = getattr(asking, name)

        def counting(*args, _name=name, _real=real):
            CALLS[_name] += 1
            return _real(*args)

        monkeypatch.setattr(asking, name, counting)


@pytest.fixture
def asked(harm, harmless):
    """Questions that get different replies."""
    return (*harm[:6], *harmless[20:26])


def test_the_same_request_on_the_same_items_is_one_generation(new_bundle, asked):
    bound = [
        bind("harm", ComplianceGenerated(max_new_tokens=6), asked),
        bind("refusals", RefusalRate(max_new_tokens=6), asked),
    ]
    bundle = new_bundle()
    found = Prober(bound).read(bundle, bound)
    assert CALLS["generate"] == 1 and list(found) == ["harm", "refusals"]
    for b in bound:
        assert found[b.spec.label] == read(b.measure, bundle, asked, b.spec.label)


def test_other_settings_other_items_and_other_words_are_asked_anew(new_bundle, asked, harmless):
    def generations(*bound):
        CALLS.clear()
        Prober(bound).read(new_bundle(), bound)
        return CALLS["generate"]

    one = bind("a", ComplianceGenerated(max_new_tokens=4), asked)
    assert generations(one, bind("b", RefusalRate(max_new_tokens=5), asked)) == 2
    wrapped = ComplianceGenerated(max_new_tokens=4, wrap="please {prompt}")
    assert generations(one, bind("b", wrapped, asked)) == 2
    assert generations(one, bind("b", RefusalRate(max_new_tokens=4), harmless[:12])) == 2
    assert generations(one, bind("b", RefusalRate(max_new_tokens=4), asked[::-1])) == 2
    assert generations(one, bind("b", RefusalRate(max_new_tokens=4), tuple(asked))) == 1


def test_likelihoods_are_shared_too(new_bundle, asked):
    bound = [
        bind("a", ExactAnswer(reads="harm"), asked),
        bind("b", ExactAnswer(reads="capability"), asked),
        bind("c", ComplianceLikelihood(), asked),
        bind("d", ComplianceLikelihood(floor=1.0), asked),
    ]
    found = Prober(bound).read(new_bundle(), bound)
    assert CALLS["answer_logprobs"] == 1 and CALLS["opening_logprobs"] == 1
    assert found["a"][1] == found["b"][1] and found["c"][0] != found["d"][0]


def test_within_a_probe_later_questions_are_answered_from_memory(new_bundle, asked):
    bound = [
        bind("a", ComplianceGenerated(max_new_tokens=4), asked),
        bind("b", RefusalRate(max_new_tokens=4), asked),
    ]
    prober, bundle = Prober(bound), new_bundle()
    prober.read(bundle, bound[:1])
    prober.read(bundle, bound[1:])
    assert CALLS["generate"] == 1
    prober.begin()
    prober.read(bundle, bound[1:])
    assert CALLS["generate"] == 2


def test_a_changed_model_is_asked_again(new_bundle, asked):
    """After `begin` where the weights changed in place; by itself for another model or wording."""
    [bound] = every = [bind("a", ExactAnswer(reads="harm"), asked)]
    prober, bundle = Prober(every), new_bundle()
    before = prober.read(bundle, every)["a"][1]
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
    assert prober.read(bundle, every)["a"][1] == before
    prober.begin()
    assert prober.read(bundle, every)["a"][1] != before
    assert prober.read(new_bundle(), every)["a"][1] == before
    worded = bundle.having(wording=Wording(wrapper="please {prompt}"))
    assert prober.read(worded, every)["a"] == read(bound.measure, worded, asked, "a")


def test_measures_that_run_the_model_share_nothing_but_with_themselves(new_bundle, asked):
    bound = [
        bind("a", Collecting(tag="x"), asked),
        bind("b", Collecting(tag="x"), asked),
        bind("c", Collecting(tag="y"), asked),
    ]
    Prober(bound).read(new_bundle(), bound)
    assert CALLS["collect x"] == CALLS["collect y"] == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_careless_measure_cannot_leave_the_model_in_another_mode(new_bundle, asked, training):
    bundle = new_bundle()
    bundle.model.train(training)
    bound = [bind("a", Collecting(), asked), bind("b", Collecting(tag="next"), asked)]
    Prober(bound).read(bundle, bound)
    assert bundle.model.training is training and torch.is_grad_enabled()
    with torch.no_grad():
        Prober(bound).read(bundle, bound)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in bundle.model.parameters())


def test_the_mode_is_put_back_when_a_measure_fails(new_bundle, asked):
    class Failing(Collecting):
        def collect(self, bundle, examples):
            super().collect(bundle, examples)
            raise RuntimeError("no")

    bundle = new_bundle()
    bundle.model.eval()
    bound = [bind("a", Failing(), asked)]
    with pytest.raises(RuntimeError, match="no"):
        Prober(bound).read(bundle, bound)
    assert not bundle.model.training


# -- judges ----------------------------------------------------------------------------------------


def test_judges_come_after_the_model_and_share_its_replies(new_bundle, asked):
    bound = [
        bind("phrases", ComplianceGenerated(max_new_tokens=6), asked),
        bind("one", Judged(max_new_tokens=6), asked),
        bind("two", Judged(max_new_tokens=6, letter="e"), asked),
    ]
    found = Prober(bound).read(new_bundle(), bound)
    assert CALLS["generate"] == 1
    assert CALLS["judge"] == 2 * len(asked)
    assert len({t["reply"] for t in found["phrases"][1]}) > 3
    assert all("judged" not in t for t in found["phrases"][1])
    for label, letter in (("one", "a"), ("two", "e")):
        for t in found[label][1]:
            assert t["judged"] == t["reply"].count(letter) / max(1, len(t["reply"]))


def test_judgements_outlast_a_probe(new_bundle, asked, tmp_path):
    bound = [bind("one", Judged(max_new_tokens=6), asked)]
    prober, bundle = Prober(bound), new_bundle()
    first = prober.read(bundle, bound)
    judged = CALLS["judge"]
    prober.begin()
    assert prober.read(bundle, bound) == first
    assert CALLS["generate"] == 2 and CALLS["judge"] == judged
    for _ in range(2):  # and in a directory, the prober
        assert Prober(bound, JudgementCache(tmp_path)).read(bundle, bound) == first
    assert CALLS["judge"] == 2 * judged


# -- without a model -------------------------------------------------------------------------------


def test_stored_transcripts_are_read_again_without_a_model(new_bundle, asked):
    bound = [
        bind("phrases", ComplianceGenerated(max_new_tokens=6), asked),
        bind("one", Judged(max_new_tokens=6), asked),
    ]
    cache = JudgementCache(None)
    found = Prober(bound, cache).read(new_bundle(), bound)
    model_calls, judged = CALLS["generate"], CALLS["judge"]
    for b in bound:
        reading, told = found[b.spec.label]
        assert rescore(b.measure, told, b.spec.label, cache) == reading
    assert (CALLS["generate"], CALLS["judge"]) == (model_calls, judged)
    # Another judge, on replies that the first one has judged: asked, and its own judgement used.
    other = Judged(max_new_tokens=6, letter="i")
    again = rescore(other, found["one"][1], "other", cache)
    shares = [t["reply"].count("i") / max(1, len(t["reply"])) for t in found["one"][1]]
    assert again.outcomes == tuple(float(s > 0.1) for s in shares) and again.label == "other"
    assert CALLS["judge"] > judged and CALLS["generate"] == model_calls


def test_transcripts_of_something_else_cannot_be_judged_again(new_bundle, asked):
    _, told = read(ExactAnswer(), new_bundle(), asked, "x")
    with pytest.raises(MeasureError, match="hold no replies"):
        rescore(Judged(), told, "x")


def test_the_key_of_a_bound_measure(asked, harmless):
    one = bind("a", ExactAnswer(), asked)
    assert one.key == bind("a", ExactAnswer(), asked).key
    others = [
        bind("b", ExactAnswer(), asked),
        bind("a", ExactAnswer(reads="harm"), asked),
        bind("a", ExactAnswer(), harmless[:12]),
    ]
    assert len({one.key, *(o.key for o in others)}) == 4
    later = SimpleNamespace(**{**vars(one.spec), "version": 2})
    assert BoundMeasure(later, one.measure, asked, one.items).key != one.key
