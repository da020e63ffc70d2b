"""A plug-in file: methods that break the rules by mistake, each in one way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from titer.data.bundle import ModelBundle
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.methods.method import Attack, Defense, Given, Run, StepLog
from titer.methods.runs import EditRun


class Free(FullSFT):
    """Trains when its model is asked for, where nothing is charged."""

    name = "free"

    def start(self, given: Given) -> Run:
        run = super().start(given)
        real = run.model

        def model() -> ModelBundle:
            run.step()
            return real()

        run.model = model  # type: ignore[method-assign]
        return run


class Late(Attack):
    """Changes its model in the call that says that nothing was left to do."""

    name = "late"
    reference = "test"
    starts_as_parent = True

    def start(self, given: Given) -> Run:
        return _Late(given.model)


class _Late:
    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle

    def model(self) -> ModelBundle:
        return self.bundle

    def step(self) -> StepLog | None:
        with torch.no_grad():
            for parameter in self.bundle.model.parameters():
                parameter.mul_(0.5)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Edit(Attack):
    """An edit of what it was given."""

    reference = "test"
    trains = False
    change: ClassVar[Callable[[Given], None]]

    def start(self, given: Given) -> Run:
        def edit(model: Any, step: int) -> dict[str, float]:
            type(self).change(given)
            return {}

        return EditRun(given.model, edit)


class TrainsReference(Edit):
    """Changes the model it may only read."""

    name = "trains_reference"
    wants = ("control",)

    @staticmethod
    def change(given: Given) -> None:
        with torch.no_grad():
            next(given.models.frozen("control").model.parameters()).add_(0.1)


class AdaptsReference(Edit):
    """Puts an adapter into the model it may only read."""

    name = "adapts_reference"
    wants = ("parent",)

    @staticmethod
    def change(given: Given) -> None:
        from peft import LoraConfig, get_peft_model

        get_peft_model(given.models.frozen("parent").model, LoraConfig(target_modules="all-linear"))


class EditsTokenizer(Edit):
    """Changes the tokenizer, which other cells share."""

    name = "edits_tokenizer"

    @staticmethod
    def change(given: Given) -> None:
        given.model.tokenizer.chat_template = "{{ messages[0]['content'] }}"


class Exits(Edit):
    """Ends the process."""

    name = "exits"

    @staticmethod
    def change(given: Given) -> None:
        raise SystemExit(0)


class UnreadFacts(FullSFT):
    """Fails when it says what it is."""

    name = "unread_facts"

    def facts(self, slots: Any = ()) -> Any:
        raise KeyError("facts")


class ShipsSystemTurn(SFTRefusal):
    """A defense whose model is asked in words of its own."""

    name = "ships_system_turn"

    def start(self, given: Given) -> Run:
        run = super().start(given)
        bundle = given.model
        asked = bundle.having(wording=type(bundle.wording)(system="Be good."))
        run.model = lambda: asked  # type: ignore[method-assign]
        return run


class Made(Defense):
    """A defense that leaves an unusual model."""

    reference = "test"
    trains = False
    stage = "weights"
    made: ClassVar[Callable[[Any], Any]]

    def start(self, given: Given) -> Run:
        model = type(self).made(given.model.model)
        return EditRun(given.model.having(model=model), lambda model, step: {})


class InDouble(Made):
    name = "in_double"

    @staticmethod
    def made(model: Any) -> Any:
        return model.double()


class InHalf(Made):
    name = "in_half"

    @staticmethod
    def made(model: Any) -> Any:
        return model.bfloat16()


class AddsParameter(Made):
    name = "adds_parameter"

    @staticmethod
    def made(model: Any) -> Any:
        model = copy.deepcopy(model)
        layer = model.model.layers[0]
        layer.gate = torch.nn.Linear(2, 2)
        layer.register_forward_hook(lambda *_: None)
        return model


class WrappedTwice(Made):
    name = "wrapped_twice"

    @staticmethod
    def made(model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        once = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        return get_peft_model(once, LoraConfig(r=2, target_modules="all-linear"))
