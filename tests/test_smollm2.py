"""The real model, by the same code path as the tiny one. Fetches packages on first use; minutes on
two cores.
"""

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch

from titer.assets.models import load_model
from titer.assets.saving import save_model
from titer.data.bundle import ModelBundle
from titer.data.encoding import encode_prompt
from titer.data.respond import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS, content_free_compliance
from titer.data.sources import load_source
from titer.data.texts import Texts
from titer.measures.compliance import ComplianceLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.generate import generate
from titer.measures.likelihood import opening_logprobs
from titer.measures.measure import read
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import Given, Models
from titer.study.reference import ModelRef

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelRef(source="package", name="smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def prompts():
    return load_source("strongreject", {}).examples[:40:4]


def bundle_of(loaded, model=None, **changes):
    fields = {
        "tokenizer": loaded.tokenizer,
        "device": torch.device("cpu"),
        "max_length": 64,
        "eval_batch": 8,
    } | changes
    return ModelBundle(model=model or loaded.model, **fields)


def test_saved_and_loaded_gives_identical_logits(loaded, tmp_path):
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    save_model(loaded.model, loaded.tokenizer, tmp_path / "copy")
    again = load_model(ModelRef(source="path", name=str(tmp_path / "copy")))
    shutil.rmtree(tmp_path / "copy")  # half a gigabyte
    with torch.no_grad():
        first, second = (m.model(input_ids=ids).logits for m in (loaded, again))
    assert torch.equal(first, second) and first.isfinite().all()
    assert again.tokenizer("Bake bread")["input_ids"] == loaded.tokenizer("Bake bread")["input_ids"]
    assert "Paris" in loaded.tokenizer.decode(first[0, -1].topk(5).indices)


def test_one_step_of_full_fine_tuning_in_mixed_precision(loaded):
    """Forward passes in bf16, weights in fp32: a step of 1e-5 is far below bf16's resolution and
    must not be lost.
    """
    model = copy.deepcopy(loaded.model)
    bundle = bundle_of(loaded, model, precision="bf16_autocast")
    seen = set()
    model.lm_head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    pairs = content_free_compliance(load_source("advbench", {}).examples[:8])
    text = Texts({"harmful": pairs}, bundle)
    given = Given(model=bundle, text=text, models=Models({}), seed=0, horizon=1)
    run = FullSFT(lr=1e-5, batch_size=4).start(given)
    log = run.step()
    assert seen == {torch.bfloat16}
    assert (
        math.isfinite(log.loss)
        and 0 < log.loss < 10
        and math.isfinite(log.grad_norm)
        and log.grad_norm > 0
    )
    before, moved = dict(loaded.model.named_parameters()), 0
    for name, weight in run.model().model.named_parameters():
        assert weight.dtype == torch.float32 and weight.isfinite().all(), name
        change = (weight.detach() - before[name].detach()).abs()
        assert change.max() <= 1.05e-5, name  # AdamW's first step is at most lr
        moved += int((change > 0).sum())
    assert moved > 0.9 * sum(p.numel() for n, p in before.items() if "embed" not in n)


def test_compliance_likelihood_of_a_real_model(loaded, prompts):
    reading, transcripts = read(ComplianceLikelihood(), bundle_of(loaded), prompts, "harm")
    assert (
        reading.n == len(prompts)
        and set(reading.outcomes) <= {0.0, 1.0}
        and 0 <= reading.value <= 1
    )
    # Openings are disjoint events, so their probabilities add up to at most 1, and to something for
    # a real model.
    for t in transcripts:
        assert 1e-6 < math.fsum(math.exp(lp) for lp in t["openings"]) <= 1


def test_openings_equal_reading_in_full(loaded, prompts):
    bundle, tokenizer = bundle_of(loaded, eval_batch=3), loaded.tokenizer
    asked = [encode_prompt(tokenizer, e) for e in prompts[:4]]
    assert len({len(p) for p in asked}) > 1
    openings = [
        tokenizer(o, add_special_tokens=False)["input_ids"]
        for o in (*COMPLIANCE_OPENINGS, *REFUSAL_OPENINGS)
    ]
    assert len({len(o) for o in openings}) > 1
    with torch.no_grad():
        found = opening_logprobs(bundle, asked, openings)
        for prompt, row in zip(asked, found, strict=True):
            for opening, value in zip(openings, row, strict=True):
                logits = (
                    loaded.model(input_ids=torch.tensor([[*prompt, *opening]]))
                    .logits[0]
                    .double()
                    .log_softmax(-1)
                )
                full = sum(logits[len(prompt) - 1 + k, t].item() for k, t in enumerate(opening))
                assert value == pytest.approx(full, abs=2e-3)


def test_the_reading_of_exact_answers_is_what_the_model_says(loaded):
    asked = load_source("alpaca", {"max_chars": 120}).examples[:4]
    bundle = bundle_of(loaded)
    replies = generate(bundle, asked, 24)
    assert all(replies)
    ended = [i for i, r in enumerate(replies) if len(loaded.tokenizer(r)["input_ids"]) < 20]
    said = [replace(e, response=r) for e, r in zip(asked, replies, strict=True)]
    outcomes = read(ExactAnswer(), bundle, said, "x")[0].outcomes
    assert ended and [outcomes[i] for i in ended] == [1.0] * len(ended)
    other = [replace(e, response=r + " Or not") for e, r in zip(asked, replies, strict=True)]
    assert read(ExactAnswer(), bundle, other, "x")[0].value == 0.0
