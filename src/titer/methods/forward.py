"""Forward passes shared by methods: logits with hidden states, log-probabilities of answers, and
what the unembedding makes of the hidden states between blocks (the logit lens).

Everything goes through modules, so that hooks (adapters, meters, `perturbed`) see it.

Shape legend: B rows, T tokens, V vocabulary, D hidden size, L blocks, N counted positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from titer.data.encoding import IGNORED, TokenBatch
from titer.errors import RunError
from titer.methods import anatomy
from titer.methods.losses import mean_over, token_ce


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a forward pass gave, with its graph.

    hidden_LBTD: L + 1 tensors [B, T, D]: what the first block reads, what each but the last gives,
    and what the unembedding reads, which the final norm has ALREADY normed. These are transformers'
    `output_hidden_states` (Mamba's too, where transformers leaves the first out). last_BTD: what
    the last block gives, before that norm. Both None unless asked for.
    """

    logits_BTV: torch.Tensor
    hidden_LBTD: tuple[torch.Tensor, ...] | None = None
    last_BTD: torch.Tensor | None = None


def outputs(model: Any, batch: TokenBatch, *, hidden: bool = False) -> Outputs:
    """One forward pass. hidden: keep the hidden states, as the next part of the model sees them:
    with what `perturbed` adds.

    Raises RunError if the model's blocks or its unembedding cannot be found, or a block was skipped
    (layer drop).
    """
    fields = {"input_ids": batch.input_BT, "attention_mask": batch.mask_BT, "use_cache": False}
    if not hidden:
        return Outputs(model(**fields).logits)
    blocks, read = anatomy.blocks(model), []

    def reading(module: Any, args: Any, kwargs: Any) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for module in (blocks[0], anatomy.unembedding(model)):
            handle = module.register_forward_pre_hook(reading, with_kwargs=True)
            stack.callback(handle.remove)
        given = stack.enter_context(anatomy.captured(blocks))
        logits_BTV = model(**fields).logits
    if len(given) != len(blocks) or len(read) != 2:
        raise RunError(
            "a forward pass did not run every block once",
            field="blocks that ran",
            value=len(given),
            expected=f"{len(blocks)}, then the unembedding",
            remedy="switch layer drop off",
        )
    return Outputs(logits_BTV, (read[0], *given[:-1], read[1]), given[-1])


def answer_logprob_B(model: Any, batch: TokenBatch) -> torch.Tensor:
    """[B] Σ log p(response token | everything before it) in nats, with graph: minus the sum, not
    the mean, of cross-entropies. 0 for a row without a response.
    """
    ce_BS, _ = token_ce(outputs(model, batch).logits_BTV, batch.labels_BT)
    return -ce_BS.sum(1)


def answer_lengths(batch: TokenBatch) -> torch.Tensor:
    """[B] how many response tokens `answer_logprob_B` sums over; a token at position 0 is not
    predicted by anything and counts in neither.
    """
    return (batch.labels_BT[:, 1:] != IGNORED).sum(1)


def lens_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of hidden states [..., D] as a block gives them: final norm, unembedding, and
    the scale or cap that the configuration puts on logits.

    Not for the last entry of `Outputs.hidden_LBTD`, which is normed already: `lens` knows that.
    """
    hidden = anatomy.final_norm(model)(hidden)
    projection = getattr(anatomy.backbone(model)[1], "project_out", None)  # OPT
    if projection is not None:
        hidden = projection(hidden)
    logits: torch.Tensor = anatomy.unembedding(model)(hidden)
    config = anatomy.text_config(model)
    factor = getattr(config, "logit_scale", None)  # Cohere
    if factor is not None:
        logits = logits * factor
    divisor = getattr(config, "logits_scaling", None)  # Granite
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _between(model: Any, out: Outputs) -> tuple[torch.Tensor, ...]:
    """The L hidden states that are not normed yet, after the checks that `lens` names."""
    if out.hidden_LBTD is None or out.last_BTD is None:
        raise RunError(
            "the forward pass kept no hidden states",
            field="hidden",
            value=False,
            expected="outputs(model, batch, hidden=True)",
        )
    with torch.no_grad():  # one position shows it
        made_V, own_V = lens_logits(model, out.last_BTD[:1, :1])[0, 0], out.logits_BTV[0, 0]
        apart, size = (made_V.float() - own_V.float()).abs().max(), own_V.float().abs().max()
    if apart > 0.05 * size:
        raise anatomy.unknown(
            model, "turns hidden states into logits in a way of its own", "final norm, unembedding"
        )
    return out.hidden_LBTD[:-1]


def lens(model: Any, out: Outputs) -> Iterator[torch.Tensor]:
    """Logits [B, T, V] that the unembedding makes of each of the L + 1 hidden states, one at a time
    (all of them need L + 1 times the memory of logits). The last are the model's own.

    Raises RunError if `out` has no hidden states, or if `lens_logits` of the last block's output
    are not the model's own logits: then it treats them in a way that is not known here.
    """
    for hidden_BTD in _between(model, out):
        yield lens_logits(model, hidden_BTD)
    yield out.logits_BTV


def lens_ce(model: Any, out: Outputs, labels_BT: torch.Tensor) -> torch.Tensor:
    """[L + 1] mean cross-entropy (nats/token) of the labels under each entry of `lens`, with graph.

    The unembedding is applied to labelled positions only, so that the memory is L + 1 times [N, V].
    All are 0 where nothing is labelled. Raises RunError as `lens` does.
    """
    counted_BS = labels_BT[:, 1:] != IGNORED
    targets_N = labels_BT[:, 1:][counted_BS]
    found = []
    for hidden_BTD in _between(model, out):
        logits_NV = lens_logits(model, hidden_BTD[:, :-1][counted_BS])
        total = functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
        found.append(total / max(1, len(targets_N)))
    return torch.stack([*found, mean_over(*token_ce(out.logits_BTV, labels_BT))])
