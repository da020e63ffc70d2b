"""The parameters that write to the residual stream, and their values with directions projected out.

Used to take directions out of a model (refusal ablation and the like): a hidden state before the
final norm is a sum of what the writers give, so what none of them writes is in none of them.

Shape legend: D hidden size, E experts, K directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from titer.errors import RunError
from titer.methods.anatomy import (
    ENDS,
    ROLES,
    backbone,
    bare,
    blocks,
    ends,
    final_norm,
    first,
    layers,
    linear,
    text_config,
    unknown,
)

_POST_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2", "post_ffn_norm")
_POST_OTHER: tuple[str, ...] = ("post_self_attn_layernorm", "post_norm1", "post_operator_norm")
_POST_OTHER += ("post_attention_layernorm",)
"""Norms between a child of a block and the stream. `post_attention_layernorm` is one only in blocks
that have a _POST_MLP too; elsewhere it is the norm before the MLP.
"""


@dataclass(frozen=True, eq=False)
class Writer:
    """A parameter whose vectors along `axis` are added to the residual stream.

    name: as in the model without adapters; an adapter's matrix has peft's tail,
    `….lora_B.default.weight`. module: what it acts through, as it is called. role: 'embedding',
    'attention', 'mixer' or 'mlp'. block: None outside the blocks. gain_D: gains, up to a common
    factor, of a norm between it and the stream (Gemma 2 and 3, OLMo 2); None without one.
    """

    name: str
    module: nn.Module
    parameter: nn.Parameter
    axis: int
    role: str
    block: int | None = None
    gain_D: torch.Tensor | None = None

    def without(self, directions_KD: torch.Tensor) -> torch.Tensor:
        """The parameter's value with all it writes along the directions taken out; no gradient.

        directions_KD: [K, D], linearly independent, or one [D], of any lengths. Raises RunError if
        a length is 0 or not finite.
        """
        value = self.parameter.detach()
        seen_KD = directions_KD.detach().reshape(-1, value.shape[self.axis]).to(value)
        if self.gain_D is not None:  # what arrives along r is what is written along r · gain
            seen_KD = seen_KD * self.gain_D.to(value)
        lengths_K = seen_KD.norm(dim=1)
        if not bool(((lengths_K > 0) & lengths_K.isfinite()).all()):
            raise RunError(
                "a direction to take out of the residual stream is 0 or not a number",
                field="lengths",
                value=lengths_K.tolist(),
                expected="finite numbers above 0",
            )
        basis_DK = torch.linalg.qr((seen_KD / lengths_K[:, None]).T).Q
        here = value.movedim(self.axis, -1)
        left: torch.Tensor = here - here @ basis_DK @ basis_DK.T
        return left.movedim(-1, self.axis)


def writers(model: Any) -> list[Writer]:
    """All parameters that write to the residual stream: embeddings of tokens and learned positions,
    the last matrices and biases of attentions, mixers and MLPs (experts stacked or not), and the B
    matrices of LoRA adapters on any of these.

    `w.parameter.copy_(w.without(r))` for all of them leaves nothing along r in any hidden state
    before the final norm. With tied embeddings the unembedding is edited too: it is the same
    parameter. Raises RunError where that is impossible: parts of no known role, norms or gains on
    the stream itself, adapters other than plain LoRA. What a block computes without a module of its
    own is not seen from here (MiniMax norms the stream, XGLM adds fixed positions): look at a
    hidden state after the edit.
    """
    final_norm(model)
    width = text_config(model).hidden_size
    found = []
    gains = []
    for i, layer in enumerate(blocks(model)):
        _refuse_vectors(model, i, layer, width)
        gains.append(_gains(model, i, layer))
    parts: list[tuple[str, int | None, str, nn.Module]] = [
        ("embedding", None, name, module) for name, module in _embeddings(model)
    ]
    for role, block, path, module in [*parts, *ends(model)]:
        gain_D = None if block is None else gains[block].get(role)
        for name, parameter, axis in _written(path, module):
            if parameter.shape[axis] != width:
                raise unknown(model, f"writes no hidden state in {name}", f"{width} numbers")
            found.append(Writer(name, module, parameter, axis, role, block, gain_D))
    return found


def _embeddings(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of what makes the stream's first state."""
    prefix, holder = backbone(model)
    projection = getattr(holder, "project_in", None)  # OPT with narrower embeddings
    known = (layers(model)[1], final_norm(model), getattr(holder, "project_out", None))
    for own, child in holder.named_children():
        path, embeds = f"{prefix}.{own}", isinstance(bare(child), nn.Embedding)
        if child is projection or (embeds and (projection is None or "position" in own)):
            yield path, child
        elif not embeds and child not in known and next(child.parameters(), None) is not None:
            raise unknown(model, f"has a part of no known role, {path}", "embeddings or blocks")


def _refuse_vectors(model: Any, i: int, block: nn.Module, width: int) -> None:
    """Raises RunError if a block, its attention or its MLP keeps a vector [D] beside its modules: a
    gain on the stream (Doge) or a bias (GPT-NeoX-Japanese).
    """
    parts = [block, *(getattr(block, n, None) for r in ("attention", "mlp") for n in ROLES[r])]
    for part in filter(None, parts):
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.shape == (width,):
                raise unknown(model, f"has a vector of no known role in block {i}, {name}", "none")


def _gains(model: Any, i: int, block: nn.Module) -> dict[str, torch.Tensor]:
    """role → gains [D] of the norm between that child and the stream, where there is one."""
    after_mlp, after_other = first(block, _POST_MLP), first(block, _POST_OTHER)
    if after_mlp is None:
        return {}
    found = {}
    for role, norm in (("mlp", after_mlp), ("attention", after_other), ("mixer", after_other)):
        if isinstance(norm, nn.Identity):
            continue
        own = None if norm is None else next(norm.parameters(), None)
        if norm is None or own is None or isinstance(norm, nn.LayerNorm):
            raise unknown(
                model, f"norms the stream unusually in block {i}", "root mean square norms"
            )
        with torch.no_grad():  # all ones have root mean square 1, so that only the gains are left
            found[role] = norm(torch.ones_like(own))
    return found


def _written(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, parameter, axis of the stream) of a module that writes to the stream."""
    inner = bare(module)
    embeds = isinstance(inner, nn.Embedding)
    if embeds:
        yield f"{path}.weight", inner.weight, 1
    elif linear(inner) is not None:
        yield f"{path}.weight", inner.weight, int(type(inner).__name__ == "Conv1D")
        if inner.bias is not None:
            yield f"{path}.bias", inner.bias, 0
    else:
        for own, parameter in inner.named_parameters(recurse=False):
            if own in ENDS:
                yield f"{path}.{own}", parameter, 2 if inner.is_transposed else 1
            elif own.removesuffix("_bias") in ENDS:
                yield f"{path}.{own}", parameter, 1
    layer: Any = module
    while layer is not inner:  # peft wraps stacked experts once for each of their parameters
        if getattr(layer, "parameter_name", ENDS[0]) in ENDS or linear(inner) is not None:
            yield from _adapters(path, layer)
        layer = layer.base_layer


def _adapters(path: str, layer: Any) -> Iterator[tuple[str, nn.Parameter, int]]:
    """The B matrices of a LoRA layer: each is [D, rank], or [D, rank · E] on stacked experts."""
    matrices = getattr(layer, "lora_B", {})
    if not matrices or getattr(layer, "lora_magnitude_vector", None):
        raise RunError(
            "an adapter writes to the residual stream in a way titer cannot take apart",
            field="adapter",
            value=path,
            expected="plain LoRA on linear layers",
            remedy="merge the adapter into the weights first (merge_and_unload)",
        )
    for adapter, matrix in matrices.items():
        yield from _written(f"{path}.lora_B.{adapter}", matrix)
