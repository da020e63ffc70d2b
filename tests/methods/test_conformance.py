"""One table for every attack and defense that is installed; and the checks themselves must be able
to fail.
"""

from dataclasses import replace

import pytest
import torch

from titer.errors import StudyError, ThreatModelError, UnknownNameError
from titer.methods import registry
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.method import Attack, Defense, MethodData
from titer.methods.registry import methods, resolve
from titer.methods.runs import EditRun
from titer.testing import conformance

# Settings under which a method is tried; one without a row is tried with its defaults.
ROWS = {
    "full_sft": [
        {"lr": 1e-3, "batch_size": 16},
        {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1},
    ],
    "lora_sft": [
        {"lr": 3e-3, "batch_size": 16},
        {"lr": 3e-3, "dropout": 0.3, "rank": 4, "schedule": "linear"},
    ],
    "sft_refusal": [{"lr": 1e-3}, {"lr": 1e-3, "retain": 0.0}],
    "adversarial_loss": [
        {"lr": 1e-3, "alpha": 0.5, "form": "capped", "retain": 1.0},
        {"lr": 1e-4},
        {"lr": 1e-4, "form": "log"},
    ],
}
UNSEEDED = {"no_attack"}
"""Methods in which nothing is random."""


def tried(kind):
    return [
        pytest.param(resolve(kind, name, settings), id=f"{name}-{i}")
        for name in methods(kind)
        for i, settings in enumerate(ROWS.get(name, [{}]))
    ]


EVERY = [*tried("attack"), *tried("defense")]


def test_the_table_is_not_empty_and_names_what_exists():
    found = {*methods("attack"), *methods("defense")}
    assert {
        "no_attack",
        "full_sft",
        "lora_sft",
        "weight_noise",
        "sft_refusal",
        "adversarial_loss",
    } <= found
    assert {*ROWS, *UNSEEDED} <= found


@pytest.mark.parametrize("method", EVERY)
def test_declaration(method):
    conformance.check_declaration(type(method))
    assert methods(method.kind)[method.name] is type(method)


@pytest.mark.parametrize("method", EVERY)
def test_round_trip(method):
    conformance.check_round_trip(method)


@pytest.mark.parametrize("method", EVERY)
def test_steps(method, trial):
    conformance.check_steps(method, trial)


@pytest.mark.parametrize("method", EVERY)
def test_resume(method, trial):
    conformance.check_resume(method, trial)


@pytest.mark.parametrize("method", EVERY)
def test_horizon_free(method, trial):
    conformance.check_horizon_free(method, trial)


@pytest.mark.parametrize("method", EVERY)
def test_needs(method, trial):
    conformance.check_needs(method, trial)


@pytest.mark.parametrize("attack", tried("attack"))
def test_starts_as_parent(attack, trial):
    conformance.check_starts_as_parent(attack, trial)


@pytest.mark.parametrize("method", [p for p in EVERY if p.values[0].name not in UNSEEDED])
def test_seed_matters(method, trial):
    conformance.check_seed_matters(method, trial)


@pytest.mark.parametrize("attack", [p for p in tried("attack") if p.id.endswith("-0")])
def test_positive_control(attack, trial):
    harmful_only = replace(trial, data=MethodData(harmful=trial.data.harmful))
    conformance.check_breaks(attack, harmful_only)


def test_only_the_adapter_is_trained_and_stored(trial):
    bundle = trial.bundle()
    run = LoraSFT().start(bundle, trial.data, seed=0, horizon=1)
    assert all("lora_" in name for name in run.state_dict()["weights"])
    run.step()
    base = dict(trial.bundle().model.named_parameters())
    for name, parameter in run.model.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, base[plain])


# -- the checks can fail ------------------------------------------------------------------------------------------


class Liar(Attack):
    """An attack that breaks one promise at a time."""

    name = "liar"
    reference = "none"
    starts_as_parent = True
    needs = ("harmful.response",)

    lie: str = ""

    def start(self, bundle, data, *, seed, horizon):
        def edit(model, step):
            first = next(model.parameters())
            self_made = {"seed": seed, "horizon": horizon}.get(self.lie, 1)
            first.add_(1e-3 * (self_made + 1))
            return {"figure": float("nan") if self.lie == "nan" else 1.0}

        if self.lie == "start":
            with torch.no_grad():
                next(bundle.model.parameters()).mul_(1.01)
        run = EditRun(model=bundle.model, edit=edit)
        if self.lie == "forgets":
            run.state_dict = lambda: {"taken": run.taken, "weights": dict(trial_weights(bundle))}
        if self.lie == "random":
            run.edit = lambda model, step: {"figure": float(torch.rand(())) + id(run) % 97}
        return run


def trial_weights(bundle):
    return {n: torch.zeros_like(p) for n, p in bundle.model.named_parameters()}


class Undocumented(Liar):
    name = "undocumented"


@pytest.mark.parametrize(
    ("check", "lie", "says"),
    [
        (conformance.check_steps, "nan", "logs figure = nan"),
        (conformance.check_resume, "forgets", "continuing from state_dict"),
        (conformance.check_horizon_free, "horizon", "depend on the horizon"),
        (conformance.check_starts_as_parent, "start", "at step 0"),
        (conformance.check_seed_matters, "", "whatever the seed"),
        (conformance.check_needs, "", "starts without it"),
        (conformance.check_breaks, "", "does not break"),
    ],
)
def test_a_broken_promise_is_found(trial, check, lie, says):
    with pytest.raises(AssertionError, match=says):
        check(Liar(lie=lie), trial)


def test_a_missing_docstring_is_found():
    with pytest.raises(AssertionError, match="docstring"):
        conformance.check_declaration(Undocumented)


def test_an_honest_attack_passes_everything(trial):
    conformance.check_attack(FullSFT(lr=1e-3, batch_size=16), trial)


# -- registry -----------------------------------------------------------------------------------------------------


def test_unknown_names_and_settings():
    with pytest.raises(UnknownNameError, match="did you mean full_sft"):
        resolve("attack", "ful_sft", {})
    with pytest.raises(StudyError, match=r"attack\.settings\.learning_rate = 1"):
        resolve("attack", "full_sft", {"learning_rate": 1})
    with pytest.raises(StudyError, match=r"attack\.settings\.lr = -1"):
        resolve("attack", "full_sft", {"lr": -1})
    with pytest.raises(StudyError, match=r"settings\.lr"):
        resolve("attack", "full_sft", {"lr": float("nan")})


@pytest.mark.parametrize("stage", ["during", "after"])
def test_a_service_defense_is_refused_with_open_weights(monkeypatch, stage):
    class Service(Defense):
        """A defense that needs control over the attacker's fine-tuning."""

        name = "service"
        reference = "none"

        def start(self, bundle, data, *, seed, horizon):
            raise AssertionError("must be refused before it starts")

    Service.stage = stage
    service = Service
    monkeypatch.setattr(registry, "methods", lambda kind: {"service": service})
    with pytest.raises(ThreatModelError, match=stage):
        resolve("defense", "service", {}, threat_model="open_weights")
    assert resolve("defense", "service", {}, threat_model="fine_tuning_service").name == "service"
