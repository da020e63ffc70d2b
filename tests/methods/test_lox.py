"""LoX against NumPy's singular value decomposition, and its limits."""

import numpy as np
import pytest
import torch

from helpers.architectures import build
from helpers.by_hand import handed, same, weights
from titer.data.bundle import ModelBundle
from titer.errors import StudyError
from titer.methods.defenses.lox import LoX

BASE = 0.05


def nearby(bundle):
    """A model whose every weight differs a little, to play the one before alignment."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in bundle.model.parameters():
            p.add_(BASE * torch.randn(p.shape, generator=generator))
    return bundle


def edited(method, bundle, base):
    run = method.start(handed(bundle, models={"base": base}))
    assert run.step() is not None and run.step() is None
    return weights(run.model().model)


def linear_in_blocks(model):
    return {
        f"{n}.weight"
        for n, m in model.named_modules()
        if ".layers." in n and isinstance(m, torch.nn.Linear)
    }


@pytest.mark.parametrize(("k", "alpha"), [(6, 1.25), (1, 0.5)])
def test_every_matrix_in_the_blocks_is_extrapolated(new_bundle, k, alpha):
    before, base = weights(new_bundle().model), weights(nearby(new_bundle()).model)
    now = edited(LoX(k=k, alpha=alpha), new_bundle(), nearby(new_bundle()))
    touched = linear_in_blocks(new_bundle().model)
    assert len(touched) == 3 * 7
    for name, value in now.items():
        if name not in touched:
            assert torch.equal(value, before[name])
            continue
        assert not torch.equal(value, before[name])
        if ".layers.1." not in name:
            continue  # NumPy's decompositions of one block are enough
        u, s, vt = np.linalg.svd((before[name] - base[name]).double().numpy(), full_matrices=False)
        expected = before[name].double().numpy() + alpha * (u[:, :k] * s[:k]) @ vt[:k]
        np.testing.assert_allclose(value.numpy(), expected, atol=2e-6)


def test_alpha_0_changes_nothing(new_bundle):
    assert same(
        edited(LoX(alpha=0.0), new_bundle(), nearby(new_bundle())), weights(new_bundle().model)
    )


def test_full_rank_goes_on_in_a_straight_line(new_bundle):
    """SVD_k of a matrix of rank at most k is the matrix."""
    before, base = weights(new_bundle().model), weights(nearby(new_bundle()).model)
    now = edited(LoX(k=10_000, alpha=2.0), new_bundle(), nearby(new_bundle()))
    for name in linear_in_blocks(new_bundle().model):
        expected = before[name] + 2.0 * (before[name] - base[name])
        torch.testing.assert_close(now[name], expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_was_not_aligned_stays(new_bundle):
    now, before = edited(LoX(), new_bundle(), new_bundle()), weights(new_bundle().model)
    for name in now:
        torch.testing.assert_close(now[name], before[name])


def test_matrices_of_gpt2_lie_the_other_way_round(new_bundle):
    """Conv1D keeps its weight as [in, out]: the best approximation is the same, transposed."""
    tokenizer = new_bundle().tokenizer

    def bundle():
        return ModelBundle(build("gpt2"), tokenizer, torch.device("cpu"))

    before, base = weights(build("gpt2")), weights(nearby(bundle()).model)
    now = edited(LoX(k=3, alpha=1.0), bundle(), nearby(bundle()))
    changed = {n for n in now if not torch.equal(now[n], before[n])}
    maps = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{i}.{m}.weight" for i in range(2) for m in maps}
    for name in changed:
        u, s, vt = np.linalg.svd((before[name] - base[name]).double().numpy(), full_matrices=False)
        expected = before[name].double().numpy() + (u[:, :3] * s[:3]) @ vt[:3]
        np.testing.assert_allclose(now[name].numpy(), expected, atol=2e-5)


def test_the_base_is_read_only_and_needed(new_bundle):
    base = nearby(new_bundle())
    edited(LoX(), new_bundle(), base)
    assert same(weights(base.model), weights(nearby(new_bundle()).model))
    with pytest.raises(StudyError, match="base"):
        LoX().start(handed(new_bundle()))


def test_a_base_of_another_shape_is_refused(new_bundle):
    tokenizer = new_bundle().tokenizer
    other = ModelBundle(build("llama"), tokenizer, torch.device("cpu"))
    with pytest.raises(Exception, match="base") as caught:
        edited(LoX(), new_bundle(), other)
    assert type(caught.value).__module__ == "titer.errors"
