"""RepNoise: discrepancy against a double loop, lens against hidden states by hand, mask, limits."""

import math

import pytest
import torch

from helpers.by_hand import (
    ask,
    ce,
    ce_differing,
    close,
    differing,
    gradient_left,
    gradient_of,
    handed,
    ids,
)
from titer.methods.defenses import repnoise
from titer.methods.defenses.repnoise import RepNoise, mmd, noise_loss

N = 8


def kernel(a, b, base):
    return sum(math.exp(-(math.dist(a, b) ** 2) / (base * 2.0**k)) for k in (-2, -1, 0, 1, 2))


def mmd_by_hand(x, y):
    """Loops over pairs of vectors, as the formula reads."""
    x, y = x.tolist(), y.tolist()
    both = [*x, *y]
    n = len(both)
    base = math.fsum(math.dist(a, b) ** 2 for a in both for b in both) / (n * n - n)

    def mean(left, right):
        return math.fsum(kernel(a, b, base) for a in left for b in right) / (len(left) * len(right))

    return mean(x, x) - 2 * mean(x, y) + mean(y, y)


@pytest.mark.parametrize(("rows", "width", "shift"), [(2, 3, 0.0), (5, 7, 1.5), (3, 1, -4.0)])
def test_mmd_against_a_double_loop(rows, width, shift):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, width, generator=generator, dtype=torch.float64) + shift
    assert mmd(x, y).item() == pytest.approx(mmd_by_hand(x, y), rel=1e-5, abs=1e-7)


def test_mmd_of_a_sample_with_itself_is_0_and_its_gradient_finite():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = mmd(x, x.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6) and bool(x.grad.isfinite().all())


def test_mmd_gradient_against_finite_differences():
    """No gradient flows through the bandwidth: it is held while the sample moves."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    mmd(leaf, y).backward()
    both = [*x.tolist(), *y.tolist()]
    base = math.fsum(math.dist(a, b) ** 2 for a in both for b in both) / 30

    def at(moved):
        rows, other = moved.tolist(), y.tolist()
        inner = math.fsum(kernel(a, b, base) for a in rows for b in rows)
        return inner / 9 - 2 * math.fsum(kernel(a, b, base) for a in rows for b in other) / 9

    for i, j in ((0, 0), (1, 3), (2, 1)):
        step = torch.zeros_like(x)
        step[i, j] = 1e-5
        numeric = (at(x + step) - at(x - step)) / 2e-5
        assert leaf.grad[i, j].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_noise_is_masked_as_the_outputs_are_and_blocks_count_alike(monkeypatch):
    seen = []

    def spied(x_BF, y_BF):
        seen.append((x_BF, y_BF))
        return mmd(x_BF, y_BF)

    monkeypatch.setattr(repnoise, "mmd", spied)
    outputs = [torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    kept = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    torch.manual_seed(0)
    value = noise_loss(outputs, kept)
    assert value.item() == pytest.approx(
        sum(mmd_by_hand(x.double(), y.double()) for x, y in seen) / 2, rel=1e-4
    )
    for (x, y), given in zip(seen, outputs, strict=True):
        assert torch.equal(x, (given * kept[..., None]).flatten(1)) and x.shape == (3, 20)
        assert torch.equal(y != 0, kept[..., None].expand(3, 4, 5).flatten(1))
    assert not torch.equal(seen[0][1], seen[1][1])  # drawn for each block


def test_the_noise_is_standard_normal(monkeypatch):
    seen = []
    monkeypatch.setattr(repnoise, "mmd", lambda x, y: seen.append(y) or x.sum())
    torch.manual_seed(0)
    noise_loss([torch.zeros(20, 50, 40)], torch.ones(20, 50, dtype=torch.bool))
    drawn = seen[0].double()
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.02)
    assert (drawn**4).mean().item() == pytest.approx(3.0, abs=0.15)


def test_mixed_precision_does_not_blur_the_distances():
    """In bfloat16 squared lengths near 10⁴ are rounded to 64: more than the distances between."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4, 64, generator=generator) + 12
    y = x + 0.3 * torch.randn(4, 64, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mmd(x, y)
    assert mixed.item() == pytest.approx(mmd_by_hand(x.double(), y.double()), rel=1e-2)


def lens_by_hand(bundle, examples):
    """Mean cross-entropy at the differing places of the responses, at every hidden state."""
    model = bundle.model
    columns = [[] for _ in range(len(model.model.layers) + 1)]
    for e in examples:
        tokens, first = ids(bundle, e, e.response)
        hidden = ask(model, tokens, output_hidden_states=True).hidden_states
        for place, (state, column) in enumerate(zip(hidden, columns, strict=True)):
            # transformers hands out the last hidden state with the final norm on it already
            last = place == len(columns) - 1
            log_p = model.lm_head(state if last else model.model.norm(state))[0].log_softmax(-1)
            column += [-log_p[first + i - 1, tokens[first + i]] for i in differing(bundle, e)[1]]
    return [torch.stack(column).mean() for column in columns]


@pytest.fixture
def spied_noise(monkeypatch):
    """Every discrepancy that is taken: the two samples."""
    seen = []

    def spied(x_BF, y_BF):
        seen.append((x_BF.detach().clone(), y_BF.detach().clone()))
        return mmd(x_BF, y_BF)

    monkeypatch.setattr(repnoise, "mmd", spied)
    return seen


@pytest.mark.parametrize(
    ("alpha", "beta", "retain"), [(1.0, 0.001, 0.0), (0.3, 0.5, 0.0), (0.7, 0.1, 0.4)]
)
def test_loss_equals_the_formula(new_bundle, uneven, spied_noise, alpha, beta, retain):
    bundle = new_bundle()
    method = RepNoise(batch_size=N, alpha=alpha, beta=beta, retain=retain)
    torch.manual_seed(0)
    log, _ = gradient_left(method.start(handed(bundle, **uneven)))
    with torch.no_grad():
        refusal, harmful = ce_differing(bundle, uneven["harmful"])
        lens = lens_by_hand(bundle, uneven["harmful"])
        kept = ce(bundle, uneven["harmless"], "response")
    assert len(lens) == 3 + 1 and lens[-1].item() == pytest.approx(harmful.item(), rel=1e-5)
    noise = sum(mmd_by_hand(x.double(), y.double()) for x, y in spied_noise) / 3
    ascent = math.log(1 + (harmful + sum(lens)).item() / 4)
    expected = refusal.item() + beta * noise - alpha * ascent + retain * kept.item()
    assert log.loss == pytest.approx(expected, rel=1e-4)
    assert log.figures["noise"] == pytest.approx(noise, rel=1e-3)
    assert log.figures["ce_harmful"] == pytest.approx(harmful.item(), rel=1e-4)


def test_what_is_pushed_to_noise_are_mlp_outputs_at_the_differing_places(
    new_bundle, uneven, spied_noise
):
    bundle = new_bundle()
    torch.manual_seed(0)
    gradient_left(RepNoise(batch_size=N).start(handed(bundle, **uneven)))
    assert len(spied_noise) == 3
    caught = {}
    for i, block in enumerate(bundle.model.model.layers):
        block.mlp.register_forward_hook(lambda m, a, out, i=i: caught.__setitem__(i, out[0]))
    rows = []
    for e in uneven["harmful"]:
        tokens, first = ids(bundle, e, e.response)
        with torch.no_grad():
            ask(bundle.model, tokens)
        places = [first + k for k in differing(bundle, e)[1]]
        rows.append((places, [caught[i].clone() for i in range(3)]))
    width = max(len(ids(bundle, e, e.response)[0]) for e in uneven["harmful"])
    for i, (x, y) in enumerate(spied_noise):
        expected = torch.zeros(N, width, 64)
        for row, (places, outputs) in enumerate(rows):
            expected[row, places] = outputs[i][places]
        # rows are drawn in an order of the method's own
        for row in x.view(N, width, 64):
            away = (expected - row).flatten(1).norm(dim=1)
            assert float(away.min()) < 1e-3 * (1 + float(row.norm()))
        counts = sorted((y.view(N, width, 64) != 0).all(-1).sum(1).tolist())
        assert counts == sorted(len(places) for places, _ in rows)


def test_gradient_of_all_but_the_noise(new_bundle, uneven):
    bundle, plain = new_bundle(), new_bundle()
    _, found = gradient_left(
        RepNoise(batch_size=N, alpha=0.7, beta=0.0, retain=0.3).start(handed(bundle, **uneven))
    )
    refusal, harmful = ce_differing(plain, uneven["harmful"])
    ascent = torch.log(1 + (harmful + sum(lens_by_hand(plain, uneven["harmful"]))) / 4)
    kept = ce(plain, uneven["harmless"], "response")
    close(found, gradient_of(plain, refusal - 0.7 * ascent + 0.3 * kept), rtol=1e-3)


def test_without_noise_and_ascent_only_the_refusal_is_learned(new_bundle, uneven):
    bundle, plain = new_bundle(), new_bundle()
    log, found = gradient_left(
        RepNoise(batch_size=N, alpha=0.0, beta=0.0).start(handed(bundle, **uneven))
    )
    refusal, _ = ce_differing(plain, uneven["harmful"])
    assert log.loss == pytest.approx(refusal.item(), rel=1e-4)
    close(found, gradient_of(plain, refusal), rtol=1e-3)


def test_hooks_are_gone_after_the_step(new_bundle, uneven):
    bundle = new_bundle()
    gradient_left(RepNoise(batch_size=N).start(handed(bundle, **uneven)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bundle.model.modules())
