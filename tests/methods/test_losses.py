"""Objectives against arrays written out by hand and against plain loops."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from titer.data.encoding import IGNORED, collate, encode
from titer.errors import MeasureError
from titer.methods.losses import differing_positions, mean_over, response_ce, token_ce

X = IGNORED


def test_token_ce_by_hand():
    # Odds 1:3 put 3/4 on token 1, equal odds put 1/2 on token 0; the last position predicts
    # nothing.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0], [9.0, -9.0]]])
    ce, counted = token_ce(logits, torch.tensor([[X, 1, 0]]))
    torch.testing.assert_close(ce, torch.tensor([[math.log(4 / 3), math.log(2)]]))
    assert counted.tolist() == [[True, True]]


def test_token_ce_leaves_ignored_positions_out():
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[X, X, 3, 6], [X, 0, X, X]])
    ce, counted = token_ce(logits, labels)
    assert counted.tolist() == [[False, True, True], [True, False, False]]
    assert ce[~counted].tolist() == [0, 0, 0]
    assert ce[0, 1].item() == pytest.approx(cross_entropy(logits[0, 1], torch.tensor(3)).item())
    assert ce[0, 2].item() == pytest.approx(cross_entropy(logits[0, 2], torch.tensor(6)).item())
    assert ce[1, 0].item() == pytest.approx(cross_entropy(logits[1, 0], torch.tensor(0)).item())


def test_token_ce_refuses_other_shapes():
    with pytest.raises(MeasureError, match=r"logits_BTV = \(1, 3, 5\)"):
        token_ce(torch.zeros(1, 3, 5), torch.zeros(1, 4, dtype=torch.long))


def test_mean_over_counted_values():
    values = torch.tensor([[1.0, 2.0, 100.0]], requires_grad=True)
    mean = mean_over(values, torch.tensor([[True, True, False]]))
    mean.backward()
    assert mean.item() == 1.5 and values.grad.tolist() == [[0.5, 0.5, 0.0]]


def test_mean_over_nothing_is_zero_without_gradient():
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    mean = mean_over(values, torch.tensor([[False, False]]))
    mean.backward()
    assert mean.item() == 0.0 and values.grad.tolist() == [[0.0, 0.0]]


def test_response_ce_is_the_mean_over_all_response_tokens(new_bundle, harm, harmless):
    bundle = new_bundle()
    # Answers of different lengths (6 tokens of refusal, fewer of the answer), so that padding
    # matters.
    rows = [
        encode(bundle.tokenizer, harm[0], harm[0].refusal, 32),
        encode(bundle.tokenizer, harmless[0], "tol", 32),
    ]
    assert len(rows[0].response) != len(rows[1].response)
    loss = response_ce(bundle.model, collate(rows, bundle.tokenizer.pad_token_id))
    nll = []
    for row in rows:
        ids = [*row.prompt, *row.response]
        log_p = bundle.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nll += [-log_p[t - 1, ids[t]].item() for t in range(len(row.prompt), len(ids))]
    assert loss.item() == pytest.approx(math.fsum(nll) / len(nll), rel=1e-5)


def masks(a, b, first_a, first_b):
    return [
        m.tolist() for m in differing_positions(torch.tensor(a), torch.tensor(b), first_a, first_b)
    ]


def test_differing_positions_of_aligned_answers():
    keep_a, keep_b = masks([[X, X, 5, 6, 7]], [[X, X, 5, 9, 7]], [2], [2])
    assert keep_a == keep_b == [[False, False, False, True, False]]


def test_positions_only_one_answer_has_count_as_differing():
    keep_a, keep_b = masks([[X, 5, 6, 7, 8]], [[X, 5, 9, X, X]], [1], [1])
    assert keep_a == [[False, False, True, True, True]]
    assert keep_b == [[False, False, True, False, False]]


def test_answers_are_aligned_at_their_first_token():
    # The second answer stands two columns further right and is one token shorter.
    keep_a, keep_b = masks([[X, 5, 6, 7, X, X]], [[X, X, X, 5, 7, X]], [1], [3])
    assert keep_a == [[False, False, True, True, False, False]]
    assert keep_b == [[False, False, False, False, True, False]]


def test_rows_are_compared_one_by_one():
    keep_a, keep_b = masks([[X, 1, 2], [X, 1, 2]], [[X, 1, 2], [X, 2, 1]], [1, 1], [1, 1])
    assert keep_a == keep_b == [[False, False, False], [False, True, True]]


def test_masks_do_not_touch_the_labels():
    labels = torch.tensor([[X, 5, 6]])
    differing_positions(labels, labels.clone(), [1], [1])
    assert labels.tolist() == [[X, 5, 6]]
