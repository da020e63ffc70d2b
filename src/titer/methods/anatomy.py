"""Where the parts of a transformers causal language model are, under peft adapters or without.

A model is an embedding, a list of blocks that read from and write to the residual stream, a final
norm and an unembedding. The parts are found by structure (the list that holds as many blocks as the
configuration says) and by a small table of the names that parts have in their roles; nothing here
asks which architecture it is. A part that cannot be found raises RunError naming the architecture.

Modules are given as they are called: under peft the adapter's layer, whose output includes the
adapter's. Names are those of the model without adapters. What writes to the residual stream, with
the axis it writes along, is in `writers.py`.

Shape legend: B rows, T tokens, V vocabulary, D hidden size, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from titer.errors import RunError

ROLES = {
    "attention": ("self_attn", "self_attention", "attn", "attention"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "shared_mlp"),
    "mixer": ("mixer", "mamba", "linear_attn", "conv"),
}
"""Names of a block's children by role. A mixer stands where the attention would be."""
ENDS: tuple[str, ...] = ("o_proj", "out_proj", "c_proj", "dense", "wo")
ENDS += ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "output_linear")
"""Names of the last linear map of such a child, and of the stacked parameters of experts."""
FINAL_NORMS: tuple[str, ...] = ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm")
FINAL_NORMS += ("final_norm", "layer_norm", "embedding_norm")  # the last is LFM2's


def plain(model: Any) -> Any:
    """The transformers model inside a peft wrapper; the model itself if there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def bare(module: Any) -> Any:
    """The layer inside a peft adapter layer; otherwise the module itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def text_config(model: Any) -> Any:
    return plain(model).config.get_text_config(decoder=True)


def unknown(model: Any, problem: str, expected: str) -> RunError:
    """The error for a part that is not found: `problem` goes on after the architecture's name."""
    architecture = type(plain(model)).__name__
    return RunError(
        f"{architecture} {problem}",
        field="architecture",
        value=architecture,
        expected=expected,
        remedy="use another model, or a method that does not reach into the model",
    )


def below(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of all modules inside, adapters unopened."""
    for name, child in bare(module).named_children():
        yield f"{prefix}{name}", child
        yield from below(child, f"{prefix}{name}.")


def linear(module: nn.Module) -> nn.Parameter | None:
    """The 2-D weight if the module is a linear map: nn.Linear, Conv1D, or a router's own kind."""
    inner = bare(module)
    weight = getattr(inner, "weight", None)
    matrix = isinstance(weight, nn.Parameter) and weight.dim() == 2
    return weight if matrix and not isinstance(inner, nn.Embedding) else None


def layers(model: Any) -> tuple[str, nn.ModuleList]:
    """(name, list of blocks)."""
    inner, count = plain(model), getattr(text_config(model), "num_hidden_layers", None)
    inside = {id(m) for m in (inner.get_decoder() or inner).modules()}
    found = [
        (name, module)
        for name, module in inner.named_modules()
        if id(module) in inside and isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found or getattr(inner.config, "is_encoder_decoder", False):
        raise unknown(model, "keeps its blocks in no known place", f"one list of {count} blocks")
    return min(found, key=lambda f: f[0].count("."))  # lists of experts lie deeper


def backbone(model: Any) -> tuple[str, nn.Module]:
    """(name, module) of what holds the list of blocks, with the embedding and the final norm."""
    name = layers(model)[0].rpartition(".")[0]
    return name, plain(model).get_submodule(name)


def blocks(model: Any) -> list[nn.Module]:
    """The decoder layers in order. The output of each is the residual stream [B, T, D] after it, or
    a tuple that begins with it.
    """
    return list(layers(model)[1])


def first(module: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The first child that has one of the names."""
    return next((c for n in names if (c := getattr(module, n, None)) is not None), None)


def _one_each(model: Any, part: str, names: Sequence[str]) -> list[nn.Module]:
    found = []
    for i, block in enumerate(blocks(model)):
        child = first(block, names)
        if child is None:
            raise unknown(model, f"has no {part} in block {i}", f"one {part} in every block")
        found.append(child)
    return found


def attentions(model: Any) -> list[nn.Module]:
    """The attention of each block; its output is [B, T, D] or a tuple that begins with it. Raises
    RunError if a block has none (Mamba, hybrids).
    """
    return _one_each(model, "attention", ROLES["attention"])


def mlps(model: Any) -> list[nn.Module]:
    """The MLP of each block, which for a mixture of experts is the whole mixture. Output [B, T, D].

    Where the MLP is no module of its own (OPT keeps two linear maps in the block) it is the linear
    map the MLP ends with, and OPT's gives [B·T, D]. Raises RunError if a block has none (Mamba).
    """
    return _one_each(model, "MLP", (*ROLES["mlp"], *ENDS))


def _ends_with(name: str, module: nn.Module) -> bool:
    own = bare(module).named_parameters(recurse=False)
    if any(n in ENDS and p.dim() == 3 for n, p in own):  # stacked experts
        return True
    return name.rpartition(".")[2] in ENDS and linear(module) is not None


def inert(module: nn.Module) -> bool:
    """Whether a module adds nothing to the stream: norms, and modules without parameters."""
    return "norm" in type(module).__name__.lower() or next(module.parameters(), None) is None


def ends(model: Any) -> Iterator[tuple[str, int, str, nn.Module]]:
    """(role, block, name, module) of all that writes to the stream inside the blocks, in order.
    Raises RunError if a child of a block has no known role, or one in a role no known end.
    """
    stack, listed = layers(model)
    for i, block in enumerate(listed):
        for own, child in block.named_children():
            path = f"{stack}.{i}.{own}"
            role = next((r for r, names in ROLES.items() if own in names), None)
            if own in ENDS:
                yield "mlp", i, path, child
            elif role is not None:
                found = [(n, m) for n, m in below(child, f"{path}.") if _ends_with(n, m)]
                if not found:
                    raise unknown(model, f"has no known end of {path}", f"one of {', '.join(ENDS)}")
                yield from ((role, i, name, module) for name, module in found)
            elif linear(child) is None and not inert(child):
                raise unknown(model, f"has a part of no known role, {path}", "attention or MLP")


def attention_out(model: Any) -> list[nn.Module]:
    """The linear modules through which attentions write to the stream (o_proj and the like), in
    order.
    """
    attentions(model)
    return [module for role, _, _, module in ends(model) if role == "attention"]


def mlp_out(model: Any) -> list[nn.Module]:
    """The modules through which MLPs write to the stream, in order.

    Linear modules (down_proj and the like); for stacked experts the module that holds them, whose
    output is the routed sum [B·T, D]. A mixture with a shared expert has both in one block:
    `Writer.block` in writers.py says which block a module belongs to.
    """
    mlps(model)
    return [module for role, _, _, module in ends(model) if role == "mlp"]


def embedding(model: Any) -> nn.Module:
    """The token embedding; weight [V, D]."""
    found: nn.Module = plain(model).get_input_embeddings()
    return found


def unembedding(model: Any) -> nn.Module:
    """The linear map from the normed stream to logits; weight [V, D], often the embedding's own."""
    found: nn.Module | None = plain(model).get_output_embeddings()
    if found is None:
        raise unknown(model, "has no unembedding", "a causal language model")
    return found


def final_norm(model: Any) -> nn.Module:
    """The norm between the last block and the unembedding. Raises RunError if there is none, as in
    models whose blocks norm the stream itself (OPT-350m, the first GPT).
    """
    found = first(backbone(model)[1], FINAL_NORMS)
    if found is None:
        raise unknown(model, "has no final norm", f"one of {', '.join(FINAL_NORMS)}")
    return found


def linear_weights(model: Any) -> dict[str, nn.Parameter]:
    """Name → weight of every linear map inside the blocks, routers included, adapters not.

    [out, in], but [in, out] in Conv1D modules. Stacked experts are 3-D: see `expert_weights`.
    """
    stack, listed = layers(model)
    weights = ((name, linear(module)) for name, module in below(listed, f"{stack}."))
    return {f"{name}.weight": weight for name, weight in weights if weight is not None}


def expert_weights(model: Any) -> dict[str, nn.Parameter]:
    """Name → stacked matrices [E, ·, ·] of the experts inside the blocks; empty without any."""
    stack, listed = layers(model)
    return {
        f"{name}.{own}": parameter
        for name, module in below(listed, f"{stack}.")
        if not isinstance(bare(module), nn.Conv1d)
        for own, parameter in bare(module).named_parameters(recurse=False)
        if parameter.dim() == 3
    }


def _hidden(module: nn.Module, output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, torch.Tensor):
        raise RunError(
            "the output of a module is no hidden state",
            field="module",
            value=type(module).__name__,
            expected="a tensor, or a tuple that begins with one",
        )
    return hidden


def _with(output: Any, hidden: torch.Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def _hooked(modules: Sequence[nn.Module], hooks: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in zip(modules, hooks, strict=True):
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def captured(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """A list that grows by one output, with its graph, each time one of the modules is called:
    after one forward pass it holds one per module, in the order they ran.

    The rest of the model goes on with a copy, because some add to an output in place (Falcon); the
    tensors in the list are on the path to the loss, so gradients with respect to them exist. Shapes
    are the modules' own: [B, T, D], but [B·T, D] for OPT's fc2 and for stacked experts. Leave the
    context before a backward pass that recomputes blocks, or they are captured again.
    """
    seen: list[torch.Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append(_hidden(module, output))
        return _with(output, seen[-1].clone())

    with _hooked(modules, [hook] * len(modules)):
        yield seen


@contextmanager
def perturbed(modules: Sequence[nn.Module], deltas: Sequence[torch.Tensor]) -> Iterator[None]:
    """Adds deltas[i] to the output of modules[i] at every call, with gradient to the delta.

    A delta has the output's shape, one that broadcasts to it, or [B, T, D] where the module gives
    [B·T, D]. A backward pass that recomputes blocks must run inside the context. Contexts entered
    later see the sum: `captured` inside `perturbed` holds perturbed outputs.
    """

    def adding(delta: torch.Tensor) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden(module, output)
            same = delta.numel() == hidden.numel()
            return _with(output, hidden + (delta.reshape(hidden.shape) if same else delta))

        return hook

    with _hooked(modules, [adding(delta) for delta in deltas]):
        yield
