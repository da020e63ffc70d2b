"""What a module's passes cost in floating-point operations, by rules told from its class.

A product with a weight matrix costs 2·in·out per position in the forward pass; in the backward
pass as much for the gradient of the weight and as much for that of the input, each only if autograd
computes it: frozen layers below the lowest trained one cost their forward pass alone. Kaplan et al.
2020 (arXiv 2001.08361), section 2.1, layer by layer. Attention adds 4·B·Tq·Tk·H·D for scores and
values, twice that in the backward pass, over the full square: kernels that skip what is masked, or
compute scores a second time, are charged the same. Stacked experts cost what the chosen ones do.

Not seen: what goes element by element (norms, look-ups); products outside modules (an SVD, an
optimizer's, a penalty's); weights used without calling their module; recurrences (Mamba's scan,
linear attention); what a gradient of a gradient costs beyond the first one. A loss on what goes on
inside a layer is charged from the next lower layer on; gradients of some weights of a layer, as
those of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Literal, NamedTuple
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

charged: list[Callable[[int], None]] = []
"""Accounts for backward passes; only the last one is charged."""


class Block:
    """Products that stand or fall together in a backward pass, those of a transformer's layer: one
    hook on what comes out serves them all. (One for each would cost a small model 5 % of a step.)

    flops: of the forward pass. between: of every backward pass through the block, whatever it is
    after. inputs: the last input of each width.
    """

    def __init__(self) -> None:
        self.flops = 0
        self.inputs: dict[int, Tensor] = {}
        self._source: Tensor | None = None
        self._weight: Tensor | None = None
        self._to_source = self._to_weights = self.between = 0

    def product(self, flops: int, source: Tensor, weight: Tensor | None) -> None:
        """A product of so many FLOPs, and as many for the gradient of each factor."""
        self.flops += flops
        if not torch.is_grad_enabled():
            return
        if source.requires_grad:
            self._source = source if self._source is None else self._source
            if source is self._source:
                self._to_source += flops
            else:
                self.between += flops
        if weight is not None and weight.requires_grad:
            self._weight = weight
            self._to_weights += flops

    def close(self, output: Any) -> None:
        """Charge the gradients when a backward pass reaches the output, but only those it computes:
        `autograd.grad` skips what it was not asked for, such as the weights'.
        """
        first = output if isinstance(output, Tensor) else next(_tensors(output), None)
        end = None if first is None else first.grad_fn
        if end is None:
            return
        # What the hook holds, the graph holds anyway: no activation. And never the end itself: a
        # node that held itself would not be freed.
        between, to_source, to_weights = self.between, self._to_source, self._to_weights
        weight, start = self._weight, _node(self._source)
        start = None if start is end else start

        def arrived(gradients: Any) -> None:
            flops = between + to_source + to_weights
            if not _whole(weight):
                flops -= 0 if start is None or _wanted(start) else to_source
                flops -= 0 if weight is None or _wanted(_node(weight)) else to_weights
            if charged:
                charged[-1](flops)

        end.register_prehook(arrived)


_backward = (-1, 0, True)
"""The backward pass that came by last: its number, of how many weights it was asked, and whether it
wanted all of those.
"""
ASKED = 2
"""Weights checked per backward pass: with `inputs=` it may compute only some of them."""


def _whole(weight: Tensor | None) -> bool:
    """Whether the backward pass under way wants all gradients, by the first weights it meets."""
    global _backward
    number, asked, whole = _backward
    now = torch._C._current_graph_task_id()
    if number != now:
        asked, whole = 0, True
    if asked < ASKED and weight is not None:
        asked, whole = asked + 1, whole and _wanted(_node(weight), by_name=False)
    _backward = now, asked, whole
    return whole and asked > 0


def _wanted(node: Any, by_name: bool = True) -> bool:
    """Whether the running backward pass executes this node."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # raised for a leaf that is an input of `autograd.grad`
        return by_name


def _node(tensor: Tensor | None) -> Any:
    """Where a backward pass brings the gradient of a tensor."""
    return None if tensor is None else tensor.grad_fn or get_gradient_edge(tensor).node


Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Rule = Callable[[Block, Any, Args, Kwargs, Any], None]
"""Charges one call of a module, given the block, the module, its arguments and its output."""


class Kind(NamedTuple):
    """What a class of modules is. rule: None if it has no products of its own. holds: a
    transformers model; a block of products; part of a block, or one of its own where there is none.
    """

    rule: Rule | None = None
    holds: Literal["model", "block", "part", None] = None


_sizes: dict[int, tuple[int, int, int]] = {}
kinds: dict[type, Kind | None] = {}
"""By class; None where there is nothing to count. Classes that are missing are looked up by
`kind_of`."""


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a class, by the first module of it that is seen."""
    kind = _find(module)
    if len(kinds) > 1000:  # peft creates a class in every pass over adapted experts
        kinds.clear()
    return kinds.setdefault(type(module), kind if any(kind) else None)


def _find(module: Any) -> Kind:
    # Classes of transformers and peft are recognised by name, so that neither has to be imported.
    name, names = type(module).__name__, {c.__name__ for c in type(module).__mro__}
    children = module._modules.values()
    if isinstance(module, nn.Linear):
        return Kind(_linear)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return Kind(_convolution)
    if "Conv1D" in names and hasattr(module, "nf"):
        return Kind(_conv1d)  # GPT-2's linear layer
    if "PreTrainedModel" in names:
        return Kind(holds="model")
    if name == "ParamWrapper":
        return Kind(_adapter, "part")
    if type(module).__module__.startswith("torch.nn.modules.") or isinstance(module, nn.Embedding):
        return Kind()
    if not children and hasattr(module, "in_features") and hasattr(module, "out_features"):
        return Kind(_linear)  # quantised
    if "GradientCheckpointingLayer" in names:  # transformers' layers
        return Kind(holds="block")
    marks = ("in_features", "nf", "base_layer")
    linear = [c for c in children if any(hasattr(c, m) for m in marks)]
    holds: Literal["part", None] = "part" if linear else None
    if name.endswith("Attention"):
        # Some wrap the module that does the work; only that one owns projections.
        return Kind(_attention if holds else None, holds)
    if _owned(module, 3):
        return Kind(_experts, holds)
    return Kind(_router if _owned(module, 2) else None, holds)


def _linear(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    source = args[0] if args else _source(args, kwargs)
    weight = module._parameters.get("weight")
    if weight is None:  # parametrised: trained if anything behind it is
        weight = next((p for p in module.parameters() if p.requires_grad and p.dim() > 1), None)
    block.inputs[module.in_features] = source
    block.product(2 * source.numel() * module.out_features, source, weight)


def _conv1d(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    source = _source(args, kwargs)
    block.inputs[module.nx] = source
    block.product(2 * source.numel() * module.nf, source, module._parameters.get("weight"))


def _convolution(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    source = _source(args, kwargs)
    depth = module.in_channels // module.groups * prod(module.kernel_size)
    block.product(2 * output.numel() * depth, source, module._parameters.get("weight"))


def _router(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    """A module that multiplies by a matrix of its own, as the sizes of what goes in and out say."""
    source = _source(args, kwargs)
    widths = {t.shape[-1:] for t in _tensors(output) if t.is_floating_point()}
    for weight in _owned(module, 2) if source is not None else ():
        for width, depth in (weight.shape, weight.shape[::-1]):
            if source.shape[-1:] == (depth,) and (width,) in widths:
                block.product(2 * source.numel() * width, source, weight)
                break


def _experts(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    """Stacked experts. An index tells which take which position; without it, each row has one."""
    source = _source(args, kwargs)
    given = _tensors((*args[1:], *kwargs.values()))
    chosen = [t for t in given if t.dtype in (torch.int64, torch.int32)]
    if source is None or not (chosen or "xpert" in type(module).__name__):
        return
    positions = chosen[0].numel() if chosen else source.numel() // source.shape[-1]
    before: list[Tensor] = [source]
    for stack in _owned(module, 3):
        # What a later matrix multiplies needs a gradient if anything before it does.
        lower = next((t for t in before if t.requires_grad), source)
        block.product(2 * positions * prod(stack.shape[1:]), lower, stack)
        before.append(stack)


def _adapter(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    """peft's LoRA of parameters: every pass multiplies the factors and adds the product."""
    off = module.disable_adapters or module.merged
    names = [] if off else [n for n in module.active_adapters if n in module.lora_A]
    # peft's fast path for one adapter of stacked experts computes it a second time while it is
    # traced.
    short = len(names) == 1 and module.num_experts > 1 and hasattr(module, "get_delta_factors")
    for name in names:
        low, high = module.lora_A[name].weight, module.lora_B[name].weight
        block.product(flops := 2 * low.numel() * high.shape[0], low, high)
        block.flops += flops if short else 0


def _attention(block: Block, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
    """Scores and values; the projections are modules of their own."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    try:
        heads, scores, values = _sizes[id(module)]
    except KeyError:  # cached, because reading a configuration is slow
        heads, scores, values = _sizes[id(module)] = _heads(module)
        finalize(module, _sizes.pop, id(module)).atexit = False
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or not heads:
        return
    square = hidden.shape[0] * hidden.shape[1] * _keys(module, hidden, kwargs, output)
    flops = 2 * square * heads * (scores + values)
    block.flops += flops
    # Their gradient is computed if that of what the output projection multiplies is, the last input
    # of that width; where the projection is elsewhere, if that of the output is.
    core = block.inputs.get(heads * values, hidden)
    core = next(_tensors(output), hidden) if core is hidden else core
    block.between += 2 * flops if core.requires_grad else 0


def _heads(module: Any) -> tuple[int, int, int]:
    """How many heads, and the sizes of their scores' and values' vectors; no heads if unknown."""
    heads = _size(module, "num_heads", "num_attention_heads", "n_heads", "n_head")
    size = _size(module, "head_dim", "head_size") or _size(module, "hidden_size") // max(heads, 1)
    return heads, _size(module, "qk_head_dim") or size, _size(module, "v_head_dim") or size


def _keys(module: Any, hidden: Tensor, kwargs: Kwargs, output: Any) -> int:
    """How many positions the queries look at, those of a cache included."""
    across = kwargs.get("key_value_states", kwargs.get("encoder_hidden_states"))
    if isinstance(across, Tensor):
        return across.shape[1]
    queries = hidden.shape[1]
    # Plain attention returns its weights, of shape (B, H, Tq, Tk); the mask tells most other
    # kernels.
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    for square in (weights, kwargs.get("attention_mask")):
        shape: tuple[int, ...] = getattr(square, "shape", ())
        if len(shape) == 4 and shape[-2] == queries:
            return int(shape[-1])
    cache, index = kwargs.get("past_key_values"), getattr(module, "layer_idx", None)
    cache = kwargs.get("layer_past") if cache is None else cache
    if cache is None or index is None:
        return queries
    past = max(0, int(cache.get_seq_length(index)) - queries)  # the queries' own keys are in it
    layers = getattr(cache, "layers", ())
    window = getattr(layers[index], "sliding_window", None) if index < len(layers) else None
    return queries + (min(past, window - 1) if window else past)


def _owned(module: Any, dimensions: int) -> list[Tensor]:
    """A module's own parameters of that many dimensions, parametrized ones as they are computed."""
    own = (p for p in module._parameters.values() if p is not None)
    changed = (getattr(module, n) for n in getattr(module, "parametrizations", ()))
    return [p for p in (*own, *changed) if p.dim() == dimensions]


def _source(args: Args, kwargs: Kwargs) -> Any:
    return args[0] if args else next(_tensors(kwargs), None)


def _tensors(value: Any) -> Iterator[Tensor]:
    parts = value.values() if isinstance(value, dict) else value
    parts = parts if isinstance(value, (dict, tuple, list)) else (value,)
    return (p for p in parts if isinstance(p, Tensor))


def _size(module: Any, *names: str) -> int:
    """The first of these that a module, or else its configuration, says; 0 if none."""
    places = (module, getattr(module, "config", None))
    sizes = (getattr(place, name, None) for place in places for name in names)
    return next((size for size in sizes if isinstance(size, int)), 0)
