"""What the formula tests are written with: plain PyTorch, one text at a time, without padding.

Nothing here uses titer's methods: losses are loops over texts, gradients are autograd's. Batches
hold every example, so that no test depends on the order in which a method draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.data.texts import Texts
from titer.methods.method import Given, Models

Weights = dict[str, torch.Tensor]


def handed(
    bundle: ModelBundle,
    *,
    models: Mapping[str, ModelBundle] | None = None,
    seed: int = 3,
    horizon: int = 8,
    **texts: Sequence[Example],
) -> Given:
    """What a method is given: this model, slots of text by keyword, further models."""
    loaders = {n: (lambda held=held: held) for n, held in (models or {}).items()}
    return Given(bundle, Texts(texts, bundle), Models(loaders), seed, horizon)


def ids(bundle: ModelBundle, example: Example, answer: str) -> tuple[list[int], int]:
    """Token ids of a prompt and its answer, and the index of the answer's first token."""
    row = bundle.encode(example, answer, bundle.max_length)
    return [*row.prompt, *row.response], len(row.prompt)


def ask(model: Any, tokens: Sequence[int], **options: Any) -> Any:
    return model(input_ids=torch.tensor([list(tokens)]), use_cache=False, **options)


def nll(bundle: ModelBundle, example: Example, answer: str) -> torch.Tensor:
    """−log p of each token of an answer, with graph."""
    tokens, first = ids(bundle, example, answer)
    log_p = ask(bundle.model, tokens).logits[0].log_softmax(-1)
    return torch.stack([-log_p[t - 1, tokens[t]] for t in range(first, len(tokens))])


def ce(bundle: ModelBundle, examples: Sequence[Example], field: str) -> torch.Tensor:
    """Mean over all answer tokens of all examples, with graph."""
    return torch.cat([nll(bundle, e, getattr(e, field)) for e in examples]).mean()


def differing(bundle: ModelBundle, example: Example) -> tuple[list[int], list[int]]:
    """Places within refusal and response at which the two differ, counted from their first token;
    a place that only one of them has differs."""
    refusal, first = ids(bundle, example, example.refusal)
    response, _ = ids(bundle, example, example.response)
    refusal, response = refusal[first:], response[first:]
    return (
        [i for i, t in enumerate(refusal) if i >= len(response) or t != response[i]],
        [i for i, t in enumerate(response) if i >= len(refusal) or t != refusal[i]],
    )


def ce_differing(
    bundle: ModelBundle, examples: Sequence[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the differing places of refusals and of responses, with graph."""
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for e in examples:
        for kept, field, values in zip(
            differing(bundle, e), ("refusal", "response"), parts, strict=True
        ):
            values.append(nll(bundle, e, getattr(e, field))[kept])
    return torch.cat(parts[0]).mean(), torch.cat(parts[1]).mean()


def gradient_of(bundle: ModelBundle, loss: torch.Tensor) -> Weights:
    """Name → gradient of every parameter, 0 where the loss does not depend on it."""
    named = dict(bundle.model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(named.items(), found, strict=True)
    }


def gradient_left(run: Any, step: int = 0) -> tuple[Any, Weights]:
    """The log of one gradient of a run (no step is taken), and what it leaves in `.grad`."""
    model = run.model().model
    model.zero_grad(set_to_none=True)
    log = run.gradient(model, step)
    return log, {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
    }


def weights(model: Any) -> Weights:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(first: Weights, second: Weights) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def close(first: Weights, second: Weights, *, rtol: float = 1e-4) -> None:
    """Equal up to rounding: each tensor to `rtol` of its own norm, those of next to no norm to
    `rtol` of a thousandth of the whole."""
    assert first.keys() == second.keys()
    whole = norm(second)
    for name, value in first.items():
        away = float((value - second[name]).norm())
        allowed = rtol * max(float(second[name].norm()), 1e-3 * whole)
        assert away <= allowed, f"{name}: {away} away, {allowed} allowed"


def norm(values: Weights) -> float:
    return math.sqrt(sum(float(v.double().pow(2).sum()) for v in values.values()))


def answer_batch(bundle: ModelBundle, examples: Sequence[Example], field: str = "response") -> Any:
    """Input ids, mask and labels of a right-padded batch, for comparing logits of two models."""
    from titer.data.encoding import collate

    rows = [bundle.encode(e, getattr(e, field), bundle.max_length) for e in examples]
    return collate(rows, bundle.tokenizer.pad_token_id)


def logits(bundle: ModelBundle, examples: Sequence[Example], field: str = "response") -> Any:
    """Logits [B, T, V] of a batch in evaluation mode."""
    batch = answer_batch(bundle, examples, field)
    with bundle.reading() as model:
        return model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False).logits


def adamw_loop(
    model: Any,
    losses: Callable[[int], torch.Tensor],
    *,
    steps: int,
    lr: float,
    clip: float = 1.0,
    weight_decay: float = 0.0,
) -> list[float]:
    """Training as anybody would write it; returns the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    seen = []
    for step in range(steps):
        loss = losses(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        seen.append(loss.item())
    return seen
