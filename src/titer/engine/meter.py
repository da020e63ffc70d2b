"""What a method costs, counted from outside: steps, examples, tokens, FLOPs, seconds, judge calls.

While something is charged, every call of a module in the process goes through the meter: it sees
whatever model a method calls (its own, a copy, a reference model, a judge), whatever part of the
output its loss reads. `titer.engine.flops` has the rules of what a pass costs. Work outside modules
(an SVD, say) is seen in seconds only. A test compares with torch's own counter.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from titer.data.tally import judge_calls
from titer.engine import flops
from titer.errors import RunError
from titer.records.record import Cost

Account = Literal["setup", "step", "search"]

DYNAMO = "TORCHDYNAMO_DISABLE"
_functorch: Any = torch._C._functorch

_charging: list[Meter] = []
"""Meters inside `charging`; the last one counts."""


class Meter:
    """Counts what happens inside `charging`, and nothing else.

    steps: counted by the engine. spent: where to go on from. exact: torch itself counts the
    products, so that gradients of gradients and products outside modules are in; such a block
    takes about four times as long, and its seconds say so.

    While a meter charges inside another's block, the outer one is paused, so that nothing is
    counted twice.
    """

    def __init__(self, spent: Cost | None = None, *, exact: bool = False) -> None:
        _stand_between(self)
        self._spent = spent or Cost()
        self.steps = self._spent.steps
        self._exact = exact
        self.passes = _Passes(products=not exact)
        self._flops: dict[Account, int] = {"setup": 0, "step": 0, "search": 0}
        self._account: Account = "step"
        self._counter: FlopCounterMode | None = None
        self._begun: tuple[float, int] | None = None
        self._seconds = 0.0
        self._judged = 0

    @contextmanager
    def charging(self, account: Account) -> Iterator[None]:
        """Charge what the block does to an account. Not reentrant."""
        if self in _charging:
            raise RuntimeError("this meter is charging already")
        outer = _charging[-1] if _charging else None
        if outer:
            outer._stop()
        self._account = account
        _charging.append(self)
        self._start()
        try:
            yield
        finally:
            self._stop()
            _charging.pop()
            if outer:
                outer._start()

    def cost(self) -> Cost:
        """Everything charged so far, what was spent before included."""
        spent, passes, charged = self._spent, self.passes, dict(self._flops)
        charged[self._account] += self._flops_of_block()
        seconds, judged = self._since_start()
        return Cost(
            steps=self.steps,
            examples=spent.examples + passes.examples,
            tokens=spent.tokens + passes.tokens(gradient=True),
            forward_tokens=spent.forward_tokens + passes.tokens(gradient=False),
            flops=spent.flops + sum(charged.values()),
            setup_flops=spent.setup_flops + charged["setup"],
            search_flops=spent.search_flops + charged["search"],
            judge_calls=spent.judge_calls + self._judged + judged,
            seconds=round(spent.seconds + self._seconds + seconds, 6),
        )

    def _start(self) -> None:
        self._begun = time.perf_counter(), judge_calls()
        flops.charged.append(self.passes.charge)
        if self._exact:
            self._counter = _Torch(display=False, custom_mapping=_kernels())
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def _stop(self) -> None:
        if self._counter:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        flops.charged.pop()
        self._flops[self._account] += self._flops_of_block()
        self._counter, self.passes.flops = None, 0
        seconds, judged = self._since_start()
        self._seconds += seconds
        self._judged += judged
        self._begun = None

    def _since_start(self) -> tuple[float, int]:
        if self._begun is None:
            return 0.0, 0
        seconds, judged = self._begun
        return time.perf_counter() - seconds, judge_calls() - judged

    def _flops_of_block(self) -> int:
        return self._counter.get_total_flops() if self._counter else self.passes.flops


_plain: Callable[..., Any] = nn.Module._call_impl
_meters = 0
"""Number of live meters."""


def _stand_between(meter: Meter) -> None:
    """Have calls of modules go through `_call` as long as the meter lives.

    torch's global module hooks would do, but they slow every call down, which costs a small model 4
    % of a step. Replacing the method for every step costs 2 %, because it invalidates Python's type
    caches of all modules.
    """
    global _meters
    if not _meters:
        _compile(False)
    _meters += 1
    nn.Module._call_impl = _call  # type: ignore
    weakref.finalize(meter, _step_aside).atexit = False


def _step_aside() -> None:
    global _meters
    _meters -= 1
    if not _meters:
        _compile(True)
    if not _meters and nn.Module._call_impl is _call:
        nn.Module._call_impl = _plain  # type: ignore


def _compile(allowed: bool) -> None:
    """Whether torch.compile compiles. Compiled code calls no modules, and would cost nothing.

    torch._dynamo takes seconds to import; until it is imported, the environment variable decides.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].config.disable = False
        torch.compiler.set_stance("default" if allowed else "force_eager")
    elif allowed:
        os.environ.pop(DYNAMO, None)
    else:
        os.environ.setdefault(DYNAMO, "1")


def _call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    if not _charging:
        return _plain(module, *args, **kwargs)
    try:
        kind = flops.kinds[type(module)]
    except KeyError:
        kind = flops.kind_of(module)
    if kind is None:
        return _plain(module, *args, **kwargs)
    passes = _charging[-1].passes
    block = passes.block
    if block is None or kind.holds == "model" or kind.holds == "block":
        return passes.called(kind, module, args, kwargs)
    output = _plain(module, *args, **kwargs)
    if kind.rule is not None:
        kind.rule(block, module, args, kwargs, output)
    return output


class _Passes:
    """What calls of modules cost. products: False if FLOPs are counted elsewhere. examples: rows of
    passes of transformers models with gradient.
    """

    def __init__(self, *, products: bool) -> None:
        self.flops, self.examples = 0, 0
        self._products = products
        self._tokens = {True: 0, False: 0}
        self._late: dict[tuple[bool, torch.device], Tensor] = {}
        self._depth = 0
        self.block: flops.Block | None = None

    def tokens(self, *, gradient: bool) -> int:
        """Tokens, without padding, of the passes with or without gradient."""
        late = (int(n) for (with_gradient, _), n in self._late.items() if with_gradient == gradient)
        return self._tokens[gradient] + sum(late)

    def charge(self, more: int) -> None:
        """FLOPs of a backward pass."""
        self.flops += more if self._products else 0

    def called(
        self, kind: flops.Kind, module: nn.Module, args: flops.Args, kwargs: flops.Kwargs
    ) -> Any:
        """A call of a module that does not belong to a block already, let through and counted."""
        if self._products and _functorch.peek_interpreter_stack() is not None:
            _refuse_batched()
        outer = self.block
        if kind.holds == "model":
            self.block, self._depth = None, self._depth + 1
            try:
                output = _plain(module, *args, **kwargs)
            finally:
                self.block, self._depth = outer, self._depth - 1
            if not self._depth:  # the outermost call: a pass the method asked for
                self._count(args, kwargs)
            return output
        if not self._products:
            return _plain(module, *args, **kwargs)
        block = flops.Block()
        try:
            self.block = block
            output = _plain(module, *args, **kwargs)
            if kind.rule:
                kind.rule(block, module, args, kwargs, output)
        finally:
            self.block = outer
            self.flops += block.flops
        block.close(output)
        return output

    def _count(self, args: flops.Args, kwargs: flops.Kwargs) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if not isinstance(ids, Tensor) or ids.dim() < 2:
            return
        gradient, shape = torch.is_grad_enabled(), ids.shape[:2]
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if gradient:
            self.examples += shape[0]
        if not isinstance(mask, Tensor) or mask.shape != shape:
            self._tokens[gradient] += prod(shape)
        elif mask.device.type == "cpu":
            self._tokens[gradient] += int(mask.sum())
        else:  # reading a number from an accelerator synchronises, so it is deferred
            key = gradient, mask.device
            self._late[key] = self._late.get(key, 0) + mask.sum()


def _refuse_batched() -> None:
    """Raises RunError inside `vmap` and `jvp`: modules do not see the batch or the tangents there,
    and a fraction of the cost would be counted.
    """
    kinds = {str(i.key()).rpartition(".")[2] for i in _functorch.get_interpreter_stack() or ()}
    if found := kinds & {"Vmap", "Jvp"}:
        raise RunError(
            f"a model is called inside torch.func's {' and '.join(sorted(found)).lower()}, whose "
            "cost cannot be told from its modules",
            field="exact_flops",
            value=False,
            expected="a method that declares `exact_flops = True`",
        )


class _Torch(FlopCounterMode):
    """torch's counter, for the process as a whole. By module, as it comes, it is slower and fails
    in `autograd.grad` with respect to something that was given to a module.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.mod_tracker: Any = _Whole()


class _Whole:
    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...


def _kernels() -> dict[Any, Callable[..., int]]:
    """Rules of kernels that torch's counter does not know, and of those where it charges a second
    computing of the scores: an attack costs the same whichever kernel serves it.
    """
    rules: dict[str, Callable[..., int]] = {"_grouped_mm": _grouped}
    for kernel in ("flash_attention_for_cpu", "fused_attention_overrideable"):
        rules[f"_scaled_dot_product_{kernel}"] = _attended
        rules[f"_scaled_dot_product_{kernel}_backward"] = _attended_backward
    for kernel in ("flash", "efficient", "cudnn"):
        rules[f"_scaled_dot_product_{kernel}_attention_backward"] = _attended_backward
    known = torch.ops.aten
    return {getattr(known, n): rule for n, rule in rules.items() if hasattr(known, n)}


def _attended(query: Any, key: Any, value: Any, *rest: Any, **settings: Any) -> int:
    return int(2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attended_backward(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **settings: Any
) -> int:
    return 2 * _attended(query, key, value)


def _grouped(left: Any, right: Any, *rest: Any, **settings: Any) -> int:
    """Rows in groups, each with a matrix of its own; also the gradient of these matrices, columns
    in groups with rows in groups.
    """
    return int(2 * prod(left) * right[-1])
