"""One representative of every difficulty a method can bring, from a study to its verdict, through
the same engine, planning and verdicts as any other: none of them has a special case there.
"""

import pytest

import titer
from titer.errors import StudyError, ThreatModelError
from titer.study import load_study
from titer.study.facts import MethodFacts

TRAINED = {"lr": 1e-3, "batch_size": 8}
DEFENSES = {
    "npo": (TRAINED, 3),  # a reference model
    "repnoise": (TRAINED, 3),  # hidden states, the lens
    "booster": (TRAINED, 3),  # a gradient that is no loss's
    "lox": ({}, 1),  # a base model, an edit
}
ATTACKS = [
    {"attack": "full_sft", "settings": TRAINED},
    # Work in `start`, then an edit; few prompts, so that the test is quick.
    {
        "attack": "refusal_ablation",
        "settings": {"examples": 24, "validation": 8, "max_kl": 10.0},
        "data": {"harmful": "harm/attack", "harmless": "harmless/attack"},
    },
    {"attack": "soft_prompt", "settings": {"lr": 0.1, "length": 4, "batch_size": 8}},  # wording
    {
        "attack": "chain",
        "name": "prune_then_lora",
        "settings": {
            "parts": [
                {"attack": "prune", "settings": {"sparsity": 0.1}},
                {"attack": "lora_sft", "settings": {"lr": 3e-3, "batch_size": 8}},
            ]
        },
    },
]


@pytest.fixture
def study(small_study):
    def make(candidates, attacks, **changes):
        resistance = small_study().resistance.model_dump(mode="json")
        resistance |= {"attacks": attacks, "budget": 4, "seeds": [1], "search_seeds": []}
        resistance |= {"data": {"harmful": "harm/attack"}}
        fields = {
            "pools": {
                "harm": {
                    "source": "tiny_world",
                    "options": {"group": "harm", "count": 480},
                    "parts": {
                        "defense": 96,
                        "attack": 96,
                        "judge": 48,
                        "confirm": 48,
                        "search": 48,
                    },
                },
                "harmless": {
                    "source": "tiny_world",
                    "options": {"group": "harmless", "count": 240},
                    "parts": {"defense": 96, "capability": 48, "attack": 48},
                },
            },
            "resistance": resistance,
            "candidates": candidates,
        }
        return load_study(small_study(**(fields | changes)))

    return make


def test_defenses_and_attacks_of_every_difficulty(study, tmp_path):
    candidates = ["none"] + [
        {"name": name, "defense": {"name": name, "settings": settings}, "steps": steps}
        for name, (settings, steps) in DEFENSES.items()
    ]
    made = study(candidates, ATTACKS, models={"base": "tiny:base"})
    view = titer.run(made, tmp_path / "run").view()
    assert view.missing == 0 and not view.problems
    built = {e.role.candidate: e.record for e in view.entries("defense")}
    assert built.keys() == DEFENSES.keys()
    assert built["npo"].cell.models.keys() == {"parent"} and built["npo"].cost.forward_tokens > 0
    assert {"noise", "ce_lens"} <= built["repnoise"].figures.keys()
    assert built["lox"].cell.models.keys() == {"base"} and built["lox"].loss == (None,)
    assert len({r.start.weights for r in built.values()}) == 1  # all start from the control
    runs = {(e.role.candidate, e.role.attack): e.record for e in view.entries("attack")}
    assert len(runs) == 5 * 4
    for (_, attack), record in runs.items():
        assert isinstance(record.facts, MethodFacts) and record.facts.role == "attack"
        if attack == "refusal_ablation":
            assert record.outcome in ("finished", "stopped_broken")
            assert 0 < record.cost.setup_flops == record.probes[0].cost.flops
        if attack == "soft_prompt":
            assert record.wording == {"placeholders": 4}
        if attack == "prune_then_lora" and len(record.loss) > 1:
            assert record.figures["part"] == (0.0,) + (1.0,) * (len(record.loss) - 1)
            assert record.facts.adapter and record.facts.trains
    verdict = titer.judge(tmp_path / "run")
    assert {c.name for c in verdict.candidates} == set(DEFENSES)


def test_a_service_that_defends_itself(study, tmp_path):
    lisa = {
        "name": "lisa",
        "settings": {"lr": 1e-3, "batch_size": 8, "alignment_steps": 3, "user_steps": 2},
    }
    candidates = ["none", {"name": "lisa", "service": {"method": lisa}}]
    made = study(candidates, ATTACKS[:1], threat_model="fine_tuning_service")
    view = titer.run(made, tmp_path / "run").view()
    runs = {e.role.candidate: e.record for e in view.entries("attack")}
    assert runs["none"].cell.host is None and runs["lisa"].cell.host.method.name == "lisa"
    steps = {name: len(r.loss) for name, r in runs.items()}
    per_step = {name: r.cost.flops / steps[name] for name, r in runs.items()}
    # Before every second step of the customer, three of the service's own, on two batches each.
    assert per_step["lisa"] > 3 * per_step["none"]
    assert not list(view.entries("defense"))  # nothing is built: the service is no stage
    assert titer.judge(tmp_path / "run").threat_model == "fine_tuning_service"


def test_a_service_fits_no_other_threat_model_and_builds_nothing(study, tmp_path):
    service = ["none", {"name": "x", "service": {"method": "lisa"}}]
    with pytest.raises(ThreatModelError, match="control over"):
        titer.run(study(service, ATTACKS[:1]), tmp_path / "one")
    stage = ["none", {"name": "x", "defense": "lisa", "steps": 2}]
    with pytest.raises(ThreatModelError, match="service"):
        titer.run(study(stage, ATTACKS[:1], threat_model="fine_tuning_service"), tmp_path / "two")
    with pytest.raises(ThreatModelError, match="edits weights"):
        edits = [{"attack": "weight_noise"}]
        titer.run(study(service, edits, threat_model="fine_tuning_service"), tmp_path / "three")


def test_what_a_method_lacks_is_named_before_any_work(study, tmp_path):
    candidates = ["none", {"name": "lox", "defense": "lox", "steps": 1}]
    with pytest.raises(StudyError, match="further model") as caught:
        titer.run(study(candidates, ATTACKS[:1]), tmp_path / "run")
    assert caught.value.value == "base" and not (tmp_path / "run" / "study.json").exists()
