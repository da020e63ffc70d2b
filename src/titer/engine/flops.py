"""What a module's passes cost in floating-point operations, by rules told from its class.

A product with a weight matrix costs 2·in·out per position in the forward pass; in the backward
pass as much for the gradient of the weight and as much for that of the input, each only if autograd
computes it: frozen layers below the lowest trained one cost their forward pass alone. Kaplan et al.
2020 (arXiv 2001.08361), section 2.1, layer by layer. Attention adds 4·B·Tq·Tk·H·D for scores and
values, twice that in the backward pass, over the full square: kernels that skip what is masked, or
compute scores a second time, are charged the same. Stacked experts cost what the chosen ones do.

Not seen: embedding look-ups, norms and all else that goes element by element; products outside
modules (an SVD, an optimizer's, a penalty's); weights used without calling their module (DoRA's);
recurrences (Mamba's scan, an LSTM); what a gradient of a gradient costs beyond the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.conv import _ConvNd


class Ledger:
    """Where rules write. modules: whether it is they that count; otherwise FLOPs come from
    somewhere else. inputs: of the products inside each attention module that is being computed,
    the last one of each width.
    """

    def __init__(self, *, modules: bool) -> None:
        self.modules = modules
        self.flops = 0
        self.inputs: list[dict[int, Tensor]] = []


Rule = Callable[[Ledger, Any, tuple, dict, Any], None]
"""Charges a ledger for one call of a module: the module, its arguments, its output."""

ledgers: list[Ledger] = []
"""Those open: the last one is charged, and nobody else."""

_INDEX = (torch.int64, torch.int32)
_UNKNOWN: Any = object()
_rules: dict[type, Rule | None] = {}


def rule_of(module: nn.Module) -> Rule | None:
    """None if the module itself costs nothing. By the first module of a class that is seen."""
    rule = _rules.get(type(module), _UNKNOWN)
    if rule is _UNKNOWN:
        if len(_rules) > 1000:  # peft makes a class anew in every pass over adapted experts
            _rules.clear()
        rule = _rules[type(module)] = _find(module)
    return rule


def _find(module: Any) -> Rule | None:
    # transformers and peft are told by names: who does without them need not load them.
    kind = type(module)
    names = {c.__name__ for c in kind.__mro__}
    children = list(module._modules.values())
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, _ConvNd):
        return _convolution
    if "Conv1D" in names and hasattr(module, "nf"):
        return _conv1d
    if "PreTrainedModel" in names:
        return model
    if kind.__name__ == "ParamWrapper":
        return _adapter
    if kind.__module__.startswith("torch.nn.modules.") or isinstance(module, nn.Embedding):
        return None
    if kind.__name__.endswith("Attention"):
        # Some wrap the module that does the work; only that one owns projections.
        return attention if any(_projects(c) for c in children) else None
    if not children and hasattr(module, "in_features") and hasattr(module, "out_features"):
        return _linear  # quantised
    if _owned(module, 3):
        return _experts
    return _router if _owned(module, 2) else None


def _projects(module: Any) -> bool:
    return any(hasattr(module, n) for n in ("in_features", "nf", "base_layer"))


def _charge(flops: int) -> None:
    if ledgers and ledgers[-1].modules:
        ledgers[-1].flops += flops


def _charge_backward(output: Tensor, flops: int, needed: Iterable[Tensor]) -> None:
    """When a backward pass comes by `output`, charge `flops` for each gradient it then computes."""
    nodes = [t.grad_fn or get_gradient_edge(t).node for t in needed if t.requires_grad]

    def arrived(gradient: Tensor) -> None:
        _charge(flops * sum(map(_computed, nodes)))

    if nodes:
        output.register_hook(arrived)


def _computed(node: Any) -> bool:
    """Does the backward pass that is running come by this node? `autograd.grad` leaves out what
    was not asked for, such as the weights' gradients where only a perturbation's is wanted.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what torch answers of a leaf that was asked for by name
        return True


def _product(ledger: Ledger, source: Tensor, output: Tensor, width: int, weight: Any) -> None:
    """A matrix times every position of the source. width: what comes out of a position."""
    flops = 2 * source.numel() * width
    ledger.flops += flops
    if ledger.inputs:
        ledger.inputs[-1][source.shape[-1]] = source
    if output.requires_grad:
        _charge_backward(output, flops, (source,) if weight is None else (source, weight))


def model(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """A transformers model as a whole costs what its modules do."""


def _linear(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    weight, width = module._parameters.get("weight"), module.out_features
    if weight is None:  # parametrised: trained if anything behind it is
        weight = next((p for p in module.parameters() if p.requires_grad and p.dim() > 1), None)
    if not isinstance(output, Tensor):  # a router that is a linear layer
        output = next(t for t in _tensors(output) if t.shape[-1] == width)
    _product(ledger, _source(args, kwargs), output, width, weight)


def _conv1d(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """GPT-2's linear layer, its weight transposed."""
    _product(ledger, _source(args, kwargs), output, module.nf, module._parameters.get("weight"))


def _convolution(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    source = _source(args, kwargs)
    if module.transposed:
        places, channels = source.numel(), module.out_channels
    else:
        places, channels = output.numel(), module.in_channels
    flops = 2 * places * channels // module.groups * prod(module.kernel_size)
    ledger.flops += flops
    if output.requires_grad:
        _charge_backward(output, flops, (source, module.weight))


def _router(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """A module that multiplies by a matrix of its own, as the sizes of what goes in and out say."""
    source = _source(args, kwargs)
    for weight in _owned(module, 2) if source is not None else ():
        for width, depth in (weight.shape, weight.shape[::-1]):
            results = [t for t in _tensors(output) if t.shape[-1:] == (width,)]
            if source.shape[-1:] == (depth,) and results and results[0].is_floating_point():
                _product(ledger, source, results[0], width, weight)
                break


def _experts(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """Stacked experts, told by an index which of them take which position; without one, every row
    is meant for one expert.
    """
    source, result = _source(args, kwargs), next(_tensors(output), None)
    chosen = [t for t in _tensors((*args[1:], *kwargs.values())) if t.dtype in _INDEX]
    if source is None or result is None or not (chosen or "xpert" in type(module).__name__):
        return
    positions = chosen[0].numel() if chosen else source.numel() // source.shape[-1]
    before: list[Tensor] = [source]
    for stack in _owned(module, 3):
        flops = 2 * positions * prod(stack.shape[1:])
        ledger.flops += flops
        if result.requires_grad:
            # What a later matrix multiplies needs a gradient if anything before it does.
            lower = next((t for t in before if t.requires_grad), source)
            _charge_backward(result, flops, (lower, stack))
        before.append(stack)


def _adapter(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """peft's LoRA of parameters: every pass multiplies the factors and adds the product."""
    result, names = (
        next(_tensors(output)),
        [n for n in module.active_adapters if n in module.lora_A],
    )
    if module.disable_adapters or module.merged:
        return
    # The short way for one adapter of stacked experts multiplies again, when torch tries it out.
    short = len(names) == 1 and module.num_experts > 1 and hasattr(module, "get_delta_factors")
    for name in names:
        low, high = module.lora_A[name].weight, module.lora_B[name].weight
        flops = 2 * low.numel() * high.shape[0]
        ledger.flops += 2 * flops if short else flops
        if result.requires_grad:
            _charge_backward(result, flops, (low, high))


def attention(ledger: Ledger, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
    """Scores and values; the projections are modules of their own."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    heads = _size(module, "num_heads", "num_attention_heads", "n_head")
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or not heads:
        return
    size = _size(module, "head_dim", "head_size", "attention_head_size")
    size = size or _size(module, "hidden_size") // heads
    sizes = _size(module, "qk_head_dim") or size, _size(module, "v_head_dim") or size
    square = hidden.shape[0] * hidden.shape[1] * _keys(module, hidden, args, kwargs, output)
    flops = 2 * square * heads * sum(sizes)
    ledger.flops += flops
    # The gradient of the scores is computed when that of the output projection's input is, the last
    # input of that width; where the projection is elsewhere, when that of the output is.
    core = ledger.inputs[-1].get(heads * sizes[1], hidden) if ledger.inputs else hidden
    core = next(_tensors(output)) if core is hidden else core
    if core.requires_grad:
        core.register_hook(lambda gradient: _charge(2 * flops))


def _keys(module: Any, hidden: Tensor, args: tuple, kwargs: dict, output: Any) -> int:
    """How many positions the queries look at, those of a cache included."""
    for name in ("encoder_hidden_states", "key_value_states"):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name].shape[1]
    queries = hidden.shape[1]
    # Plain attention returns its weights, of shape (B, H, Tq, Tk); the mask tells most other kernels.
    weights = output[1:2] if isinstance(output, tuple) else ()
    for square in (*weights, kwargs.get("attention_mask"), *args[1:]):
        if len(getattr(square, "shape", ())) == 4 and square.shape[-2] == queries:
            return int(square.shape[-1])
    caches = (kwargs.get(n) for n in ("past_key_values", "layer_past"))
    cache = next((c for c in caches if hasattr(c, "get_seq_length")), None)
    index = getattr(module, "layer_idx", None)
    if cache is None or index is None:
        return queries
    past = max(0, int(cache.get_seq_length(index)) - queries)  # the cache has the queries' own keys
    layers = getattr(cache, "layers", ())
    window = getattr(layers[index], "sliding_window", None) if index < len(layers) else None
    return queries + (min(past, window - 1) if window else past)


def _owned(module: Any, dimensions: int) -> list[Tensor]:
    """A module's own parameters of so many dimensions, as they are while an adapter changes them."""
    own = (p for p in module._parameters.values() if p is not None)
    changed = (getattr(module, n) for n in getattr(module, "parametrizations", ()))
    return [p for p in (*own, *changed) if p.dim() == dimensions]


def _source(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(_tensors(kwargs), None)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        parts = value.values() if isinstance(value, dict) else value
        yield from (p for p in parts if isinstance(p, Tensor))


def _size(module: Any, *names: str) -> int:
    """The first of these that a module, or else its configuration, says; 0 if none."""
    for place in (module, getattr(module, "config", None)):
        for name in names:
            size = getattr(place, name, None)
            if isinstance(size, int):
                return size
    return 0
