"""What the conformance checks run a method on: a small model, text, and a short walk of the run."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from titer.data.bundle import ModelBundle
from titer.data.encoding import collate
from titer.data.examples import Example
from titer.data.texts import Texts
from titer.engine.checkpoint import pack, unpack
from titer.methods.method import (
    Attack,
    Given,
    Method,
    Models,
    Reward,
    Run,
    ServiceDefense,
    StepLog,
)


@dataclass(frozen=True)
class Trial:
    """What a method is tried on. bundle: gives a fresh copy of one model at every call.

    texts: slot → examples. models: name → further model. harm: share of forbidden answers a model
    gives; needed for positive controls only. reward: scores replies. attack: what a service runs.
    """

    bundle: Callable[[], ModelBundle]
    texts: Mapping[str, Sequence[Example]]
    models: Mapping[str, Callable[[], ModelBundle]] = field(default_factory=dict)
    harm: Callable[[ModelBundle], float] | None = None
    reward: Reward | None = None
    attack: Attack | None = None

    def given(self, *, seed: int = 0, horizon: int = 1) -> Given:
        """What a method is handed, on a fresh copy of the model."""
        bundle = self.bundle()
        return Given(
            model=bundle,
            text=Texts(self.texts, bundle),
            models=Models(self.models),
            seed=seed,
            horizon=horizon,
            reward=self.reward,
        )

    def start(self, method: Method, *, seed: int = 0, horizon: int = 1) -> Run:
        """Begin a method; that of a service runs the trial's attack."""
        given = self.given(seed=seed, horizon=horizon)
        if not isinstance(method, ServiceDefense):
            return method.start(given)
        if self.attack is None:
            raise AssertionError("this trial has no attack for a service to run")
        return method.host(self.attack.start(given), given)


@dataclass(frozen=True)
class Walk:
    """What some steps of a run gave: the logs (fewer than asked for if it ended), and every
    parameter afterwards by name.
    """

    logs: tuple[StepLog, ...]
    weights: dict[str, torch.Tensor]


def tiny_trial(variant: str = "aligned") -> Trial:
    """A trial on a shipped tiny model: 240 pairs of each kind to train on, 120 other prompts to
    read harm from; `parent`, `control` and `base` as further models.
    """
    from titer.assets.models import load_model
    from titer.data.sources import load_source
    from titer.measures.exact_answer import ExactAnswer
    from titer.measures.measure import read
    from titer.methods.attacks.full_sft import FullSFT
    from titer.study.reference import ModelRef

    def loaded(name: str) -> Callable[[], ModelBundle]:
        found = load_model(ModelRef(source="tiny", name=name))
        return lambda: ModelBundle(
            model=copy.deepcopy(found.model),
            tokenizer=found.tokenizer,
            device=torch.device("cpu"),
            max_length=32,
            eval_batch=512,
        )

    texts = {
        g: load_source("tiny_world", {"group": g, "count": 360}).examples
        for g in ("harm", "harmless")
    }
    own = loaded(variant)

    def harm(bundle: ModelBundle) -> float:
        value = read(ExactAnswer(reads="harm"), bundle, texts["harm"][240:], "harm")[0].value
        return math.nan if value is None else value

    return Trial(
        bundle=own,
        texts={"harmful": texts["harm"][:240], "harmless": texts["harmless"][:240]},
        models={"parent": own, "control": own, "base": loaded("base")},
        harm=harm,
        attack=FullSFT(lr=1e-3, batch_size=16),
    )


def walk(
    method: Method,
    trial: Trial,
    *,
    steps: int,
    seed: int = 0,
    horizon: int | None = None,
    interrupt: int | None = None,
) -> Walk:
    """Take steps as the engine does: global randomness from the seed, training mode left to the
    run.

    interrupt: after so many steps the state goes through a checkpoint's form into a new run, which
    goes on.
    """
    horizon = steps if horizon is None else horizon
    logs: list[StepLog] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = trial.start(method, seed=seed, horizon=horizon)
        for step in range(steps):
            if step == interrupt:
                skeleton, tensors = pack(run.state_dict())
                state = unpack(json.loads(json.dumps(skeleton)), tensors)
                random = torch.random.get_rng_state()
                run = trial.start(method, seed=seed, horizon=horizon)
                run.load_state_dict(state)
                torch.random.set_rng_state(random)
            log = run.step()
            if log is None:
                break
            logs.append(log)
    parameters = run.model().model.named_parameters()
    return Walk(tuple(logs), {n: p.detach().clone() for n, p in parameters})


def logits_of(bundle: ModelBundle, trial: Trial) -> torch.Tensor:
    examples = next(iter(trial.texts.values()))[:8]
    rows = [bundle.encode(e, e.response or "", bundle.max_length) for e in examples]
    batch = collate(rows, bundle.tokenizer.pad_token_id, bundle.device)
    with bundle.reading() as model:
        output = model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False)
        logits_BTV: torch.Tensor = output.logits
        return logits_BTV


def must(fact: bool, sentence: str) -> None:
    if not fact:  # not `assert`: these must hold under `python -O` too
        raise AssertionError(sentence)
