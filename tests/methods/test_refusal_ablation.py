"""Refusal ablation against plain PyTorch: direction, what is left along it, and what it does."""

import pytest
import torch

from helpers.by_hand import ask, handed, logits, same, weights
from titer.errors import StudyError
from titer.methods.attacks.refusal_ablation import (
    RefusalAblation,
    ablated,
    directions,
    first_logprobs,
    refusal_score,
    refusal_tokens,
    untie,
)


def last_states(bundle, examples):
    """[N, L, D] what each block gives at the last prompt token, one prompt at a time."""
    caught = {}
    hooks = [
        block.register_forward_hook(
            lambda m, a, out, i=i: caught.__setitem__(i, out[0] if isinstance(out, tuple) else out)
        )
        for i, block in enumerate(bundle.model.model.layers)
    ]
    rows = []
    with torch.no_grad():
        for e in examples:
            ask(bundle.model, bundle.prompt(e))
            rows.append(torch.stack([caught[i][0, -1] for i in range(len(hooks))]))
    for hook in hooks:
        hook.remove()
    return torch.stack(rows)


def direction_by_hand(bundle, harmful, harmless):
    difference = last_states(bundle, harmful).mean(0) - last_states(bundle, harmless).mean(0)
    return difference / difference.norm(dim=-1, keepdim=True)


def test_the_block_outputs_are_transformers_hidden_states(new_bundle, harm):
    """But for the last, which transformers hands out after the final norm."""
    bundle = new_bundle()
    found = last_states(bundle, harm[:1])[0]
    hidden = ask(bundle.model, bundle.prompt(harm[0]), output_hidden_states=True).hidden_states
    for i in range(2):
        torch.testing.assert_close(found[i], hidden[i + 1][0, -1])


def test_directions_are_unit_differences_of_means(new_bundle, harm, harmless):
    """Three blocks: the last fifth is left out, so two candidates remain (int(0.8 · 3) = 2)."""
    bundle = new_bundle()
    given = (harm[:9], harmless[:7])
    found = directions(bundle, *([bundle.prompt(e) for e in g] for g in given))
    expected = direction_by_hand(bundle, *given)[:2]
    assert found.shape == (2, 64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def attacked(tiny, harm, harmless):
    """The run after its step, the model before, and the direction that was taken out."""
    import copy

    from titer.data.bundle import ModelBundle

    def bundle():
        return ModelBundle(
            copy.deepcopy(tiny.model), tiny.tokenizer, torch.device("cpu"), max_length=32
        )

    ours, before = bundle(), bundle()
    method = RefusalAblation(examples=48, validation=16, max_kl=10.0)
    texts = {"harmful": harm[:64], "harmless": harmless[:64]}
    run = method.start(handed(ours, **texts))
    now = weights(ours.model)
    assert torch.equal(now.pop("lm_head.weight"), before.model.lm_head.weight)
    assert same(now, weights(before.model)), "the choice must not change anything"
    log = run.step()
    assert run.step() is None
    return run.model(), before, log


def taken_out(now, before):
    """The direction that an output projection lost: W' = (I − rrᵀ)W, so W − W' = r·(rᵀW)."""
    name = "model.layers.0.mlp.down_proj"
    lost = (
        (before.model.get_submodule(name).weight - now.model.get_submodule(name).weight)
        .detach()
        .double()
    )
    u, s, _ = torch.linalg.svd(lost)
    assert float(s[1]) < 1e-4 * float(s[0])
    return u[:, 0]


def test_one_direction_is_taken_out_and_it_is_a_candidate(attacked, harm, harmless):
    """The prompts were drawn by seed, so the direction is near, not at, that of all of them."""
    now, before, log = attacked
    expected = direction_by_hand(before, harm[:64], harmless[:64]).double()
    match = (expected @ taken_out(now, before)).abs()
    assert float(match[int(log.figures["layer"])]) > 0.98


def streams(bundle, example):
    """Every hidden state before the final norm [T, D]: after the embedding, after every block."""
    read = []
    norm = bundle.model.model.norm
    hook = norm.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        out = ask(bundle.model, bundle.prompt(example), output_hidden_states=True)
    hook.remove()
    return [state[0] for state in (*out.hidden_states[:-1], *read)]


def test_nothing_writes_along_it_any_more(attacked, harm):
    """Every hidden state of every layer is orthogonal to it, at every token."""
    now, before, _ = attacked
    direction = taken_out(now, before).float()
    for e in harm[:6]:
        found = streams(now, e)
        assert len(found) == 4
        for state in found:
            assert float((state @ direction).abs().max()) < 1e-4 * float(state.norm(dim=1).max())
        for state in streams(before, e)[1:]:
            assert float((state @ direction).abs().max()) > 0.5


def test_the_edit_is_the_ablation_of_the_stream(attacked, harm, harmless):
    """The same logits as hooks that project all that is added to the stream (embedding, attentions,
    MLPs). The tiny model ties its unembedding, which reads the stream: it must stay as it is."""
    now, before, _ = attacked
    direction = taken_out(now, before).float()

    def projected(module, args, out):
        first = out[0] if isinstance(out, tuple) else out
        first = first - (first @ direction)[..., None] * direction
        return (first, *out[1:]) if isinstance(out, tuple) else first

    inner = before.model.model
    parts = [inner.embed_tokens, *(p for b in inner.layers for p in (b.self_attn, b.mlp))]
    hooks = [m.register_forward_hook(projected) for m in parts]
    texts = [*harm[:8], *harmless[:8]]
    expected = logits(before, texts)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits(now, texts), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected, logits(before, texts), atol=0.1)
    assert torch.equal(now.model.lm_head.weight, before.model.lm_head.weight)


def test_candidates_are_judged_as_the_edit_would_leave_the_model(attacked, harm, harmless):
    """What was chosen by is what is handed out; the model is put back bit for bit."""
    now, before, log = attacked
    direction = taken_out(now, before).float()
    untie(before.model)
    was = weights(before.model)
    texts = [*harm[:8], *harmless[:8]]
    with ablated(before.model, direction):
        within = logits(before, texts)
    torch.testing.assert_close(logits(now, texts), within, rtol=1e-4, atol=1e-4)
    assert same(weights(before.model), was)
    assert log.figures["refusal_after"] < 0 < log.figures["refusal_before"]
    with pytest.raises(ZeroDivisionError), ablated(before.model, direction):
        raise ZeroDivisionError
    assert same(weights(before.model), was)


def test_untying_changes_no_answer_and_nothing_that_is_not_tied(new_bundle, harm):
    bundle = new_bundle()
    before = logits(bundle, harm[:4])
    assert bundle.model.lm_head.weight is bundle.model.model.embed_tokens.weight
    untie(bundle.model)
    own = bundle.model.lm_head.weight
    assert own is not bundle.model.model.embed_tokens.weight and own.requires_grad
    assert torch.equal(logits(bundle, harm[:4]), before)
    untie(bundle.model)
    assert bundle.model.lm_head.weight is own


def greedy_opening(bundle, example):
    return int(ask(bundle.model, bundle.prompt(example)).logits[0, -1].argmax())


def test_it_takes_the_refusal_out_of_the_tiny_model(attacked, harm, harmless):
    """On other prompts: harmful replies open as refusals before, not after; harmless ones stay."""
    now, before, _ = attacked
    refusal = before.tokenizer(harm[0].refusal, add_special_tokens=False)["input_ids"][0]
    new = harm[200:240]
    with torch.no_grad():
        assert all(greedy_opening(before, e) == refusal for e in new)
        assert sum(greedy_opening(now, e) == refusal for e in new) <= 4
        kept = [greedy_opening(now, e) == greedy_opening(before, e) for e in harmless[100:140]]
    assert sum(kept) >= 36


def test_first_logprobs_and_score_by_hand(new_bundle, harm, harmless):
    bundle = new_bundle()
    mixed = [*harm[:3], *harmless[:3]]
    found = first_logprobs(bundle, [bundle.prompt(e) for e in mixed])
    with torch.no_grad():
        expected = torch.stack(
            [ask(bundle.model, bundle.prompt(e)).logits[0, -1].log_softmax(-1) for e in mixed]
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    probability = expected.double().exp()[:, [5, 9]].sum(1)
    odds = (probability.log() - (1 - probability).log()).mean()
    assert refusal_score(expected, [5, 9]) == pytest.approx(odds.item(), rel=1e-4)


def test_score_of_certain_refusals_is_finite():
    certain = torch.tensor([[0.0, -200.0, -200.0]])
    assert torch.tensor([refusal_score(certain, [0]), refusal_score(certain, [1])]).isfinite().all()


def test_how_refusals_open_is_read_off_the_model():
    """Token 2 opens two harmful replies and no harmless one; token 1 one of each."""
    eye = torch.eye(4).log().clamp(min=-50)
    assert refusal_tokens(eye[[2, 2, 1, 1]], eye[[1, 1, 1, 0]]) == [2]
    assert refusal_tokens(eye[[3, 3, 3]], eye[[3, 3, 3]]) == [3]


def test_the_limit_on_harmless_change_comes_first(new_bundle, harm, harmless, monkeypatch):
    """Candidates by hand: the second refuses least but changes harmless replies too much."""
    from titer.methods.attacks import refusal_ablation as module

    eye = torch.eye(3)
    calm, wild = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.1, 0.1, 0.8]]).log()
    replies = {"none": (calm, calm), 0: (calm, calm), 1: (wild, wild)}
    now = ["none"]

    def taking_turns(model, direction):
        from contextlib import contextmanager

        @contextmanager
        def within():
            now[0] = int(direction.argmax())
            yield

        return within()

    monkeypatch.setattr(module, "ablated", taking_turns)
    monkeypatch.setattr(module, "first_logprobs", lambda b, prompts: replies[now[0]][prompts])
    monkeypatch.setattr(module, "refusal_tokens", lambda h, b: [0])
    for limit, layer in ((10.0, 1), (0.01, 0)):
        now[0] = "none"
        method = RefusalAblation(max_kl=limit)
        direction, figures = method._choose(new_bundle(), eye[:2], 0, 1)
        assert figures["layer"] == layer and torch.equal(direction, eye[layer])
    # KL of what was from what is: 0.5·ln 5 + 0.4·ln 4 + 0.1·ln(1/8)
    now[0] = "none"
    assert RefusalAblation(max_kl=10.0)._choose(new_bundle(), eye[:2], 0, 1)[1][
        "kl"
    ] == pytest.approx(1.1513, abs=1e-4)


def test_too_few_prompts_to_choose_on(new_bundle, harm, harmless):
    with pytest.raises(StudyError, match="prompt"):
        RefusalAblation().start(handed(new_bundle(), harmful=harm[:1], harmless=harmless[:4]))
