"""What would fail in the middle of a run is found before it, by name."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch

from helpers.architectures import build
from titer.assets.models import load_model
from titer.assets.saving import save_model
from titer.cli import tryout
from titer.cli.tryout import TryOut
from titer.data.pools import Pools
from titer.engine import preflight as rooms
from titer.engine.estimate import complete_plan, estimate, method_key
from titer.engine.preflight import preflight
from titer.engine.preflight.outline import outline, positions
from titer.errors import AssetError
from titer.methods.attacks.full_sft import FullSFT
from titer.study.reference import ModelRef

ROOT = Path(__file__).parents[2]
LORA = {"attack": "lora_sft", "settings": {"batch_size": 4}}
FULL = {"attack": "full_sft", "settings": {"batch_size": 4}}


@pytest.fixture
def saved(tiny, tmp_path):
    """A function that saves a small model of an architecture with the tiny tokenizer, or with
    fields of that changed; gives the directory."""

    def save(name="llama", *, tokenizer=None, generation=None, **config):
        ids = {"eos_token_id": tiny.tokenizer.eos_token_id, "pad_token_id": 0}
        model = build(name, **{"vocab_size": 256, **ids, **config})
        folder = tmp_path / name
        save_model(model, tiny.tokenizer, folder)
        if tokenizer:
            file = folder / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | tokenizer))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return save


@pytest.fixture
def look(small_study, tmp_path):
    """A function that makes the preflight of the small study with its fields changed."""

    def at(*, weights="local", attacks=(FULL,), measure=None, resistance=(), **changes):
        fields = small_study().resistance.model_dump(mode="json")
        fields |= {"attacks": list(attacks), "seeds": [1], **dict(resistance)}
        fields |= {"harm": measure} if measure else {}
        changes = {"candidates": ["none"], "runtime": {"max_length": 32}, **changes}
        study = small_study(resistance=fields, **changes)
        pools = Pools(study)
        benches = {
            name: TryOut(tmp_path / "scratch", pools, study.runtime, torch.device(device))
            for name, device in (("bench", "cpu"), ("sketch", "meta"))
        }
        plan = complete_plan(study, pools)
        return preflight(study, plan, pools, weights=weights, **benches)

    return at


def errors(seen):
    return [f.problem for f in seen.findings if f.severity == "error"]


def notices(seen):
    return [f.problem for f in seen.findings if f.severity == "notice"]


# -- steps and readings ---------------------------------------------------------------------------


def test_all_is_tried_and_nothing_found(look):
    seen = look(
        attacks=[FULL, LORA, "weight_noise"],
        candidates=["none", {"name": "refusal", "defense": "sft_refusal", "steps": 4}],
    )
    assert seen.findings == () and seen.unchecked == ()
    assert seen.tried == {
        "tiny:aligned": ["sft_refusal", "exact_answer", "full_sft", "lora_sft", "weight_noise"]
    }
    assert seen.parameters == {ModelRef.model_validate("tiny:aligned"): 167360}


def test_each_model_is_loaded_once_and_one_at_a_time(look, monkeypatch):
    alive = []

    def counted(ref):
        gc.collect()
        assert not any(model() is not None for _, model in alive), "two models were in memory"
        loaded = load_model(ref)
        alive.append((str(ref), weakref.ref(loaded.model)))
        return loaded

    monkeypatch.setattr(tryout, "load_model", counted)
    seen = look(
        attacks=[FULL, "weight_noise"],
        candidates=[
            "none",
            {"name": "refusal", "defense": "sft_refusal", "steps": 4},
            {"name": "other", "model": "tiny:untaught"},
        ],
    )
    assert [name for name, _ in alive] == ["tiny:aligned", "tiny:untaught"]
    assert list(seen.tried) == ["tiny:aligned", "tiny:untaught"] and not errors(seen)


def test_a_model_too_large_to_be_kept_is_loaded_again(look, monkeypatch):
    calls = []
    monkeypatch.setattr(tryout, "KEPT_BYTES", 1)
    monkeypatch.setattr(tryout, "load_model", lambda ref: calls.append(ref) or load_model(ref))
    assert not look(attacks=[FULL, "weight_noise"]).findings and len(calls) == 2


def test_mamba_takes_full_fine_tuning_and_every_measure(look, saved):
    generated = {"measure": "compliance_generated", "part": "harm/judge"}
    second = {"measure": "compliance_likelihood", "part": "harm/judge"}
    seen = look(
        model=str(saved("mamba")),
        attacks=[FULL, LORA, "soft_prompt", "prune"],
        measure=generated,
        resistance={"second": second},
        candidates=["none", {"name": "noise", "defense": "repnoise", "steps": 2}],
    )
    found = [e for e in errors(seen) if "tokenizer" not in e]
    assert len(found) == 2
    assert "repnoise cannot be run on" in found[0] and "MambaForCausalLM has no MLP" in found[0]
    assert "lora_sft cannot be run on" in found[1] and "Mamba-based models" in found[1]
    (tried,) = seen.tried.values()
    assert {"compliance_generated", "compliance_likelihood", "full_sft", "soft_prompt"} <= {*tried}


def test_adapters_on_experts(look, saved):
    folder = str(saved("mixtral"))
    assert not look(model=folder, attacks=[LORA]).findings
    dropout = {"attack": "lora_sft", "settings": {"dropout": 0.1}}
    (problem,) = errors(look(model=folder, attacks=[FULL, dropout]))
    assert "lora_sft cannot be run on" in problem and "lora_dropout" in problem
    seen = look(model=str(saved("qwen2_moe")), attacks=[FULL, LORA])
    (problem,) = notices(seen)
    assert not errors(seen) and "lora_sft puts no adapter on the experts" in problem


def test_one_attack_that_fails_leaves_the_others_tried(look, monkeypatch):
    def fail(self, given):
        raise MemoryError

    monkeypatch.setattr(FullSFT, "start", fail)
    seen = look(attacks=[FULL, "weight_noise"])
    assert errors(seen) == ["full_sft cannot be run on tiny:aligned, because memory ran out"]
    assert "weight_noise" in seen.tried["tiny:aligned"]


def test_every_part_of_a_chain_is_tried(look):
    """A later part says what it lacks only when it begins."""
    parts = [
        {"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 8}, "steps": 40},
        {"attack": "refusal_ablation"},
    ]
    short = {"harmful": "harm/attack", "harmless": "harmless/defense", "examples": 4}
    chain = {"attack": "chain", "settings": {"parts": parts}, "data": short}
    (problem,) = errors(look(attacks=[FULL, chain]))
    assert problem.startswith("chain cannot be run on tiny:aligned (part 2 of the chain")


def test_what_an_attack_leaves_is_read_too(look, monkeypatch):
    from titer.measures.exact_answer import ExactAnswer

    real, looks = ExactAnswer.score, []

    def failing(self, transcripts):
        looks.append(transcripts)
        if len(looks) > 1:
            raise ValueError("no such thing")
        return real(self, transcripts)

    monkeypatch.setattr(ExactAnswer, "score", failing)
    expected = (
        "after full_sft, exact_answer cannot be read on tiny:aligned (ValueError: no such thing)"
    )
    assert errors(look()) == [expected]


def test_weights_that_are_no_numbers(look, tiny, tmp_path):
    model = load_model(ModelRef.model_validate("tiny:aligned")).model
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    save_model(model, tiny.tokenizer, tmp_path / "nan")
    found = errors(look(model=str(tmp_path / "nan")))
    assert any("exact_answer gets no finite numbers" in e for e in found)
    assert any("first step of full_sft" in e and "not finite" in e for e in found)


def test_an_attack_inside_a_service(look):
    service = {"method": {"name": "lisa", "settings": {"alignment_steps": 2, "user_steps": 3}}}
    seen = look(
        threat_model="fine_tuning_service",
        candidates=["none", {"name": "lisa", "service": service}],
    )
    assert "full_sft inside the service lisa" in seen.tried["tiny:aligned"] and not seen.findings


# -- text -----------------------------------------------------------------------------------------


def test_a_context_shorter_than_the_text(look, saved):
    folder = str(saved("gpt2", n_positions=8))
    found = errors(look(model=folder))
    assert any(
        "full_sft: rows from harm/attack have up to 13 tokens" in e and "was made for 8" in e
        for e in found
    )
    assert any("exact_answer needs" in e and "harm/judge" in e for e in found)


def test_a_context_shorter_than_max_length_alone(look, saved):
    seen = look(model=str(saved("llama")), runtime={"max_length": 128})
    assert not errors(seen)
    (problem,) = notices(seen)
    assert "runtime.max_length is 128" in problem and "made for 64 tokens" in problem


@pytest.mark.parametrize(("name", "size"), [("opt", 64), ("gpt2", 64), ("llama", None)])
def test_learned_positions_are_counted_without_those_no_token_uses(name, size):
    assert positions(build(name)) == size


def test_a_table_of_positions_shorter_than_the_configuration_says(look, saved, monkeypatch):
    folder = str(saved("opt"))
    monkeypatch.setattr("titer.engine.preflight.text.positions", lambda model: 10)
    assert any("was made for 10" in e for e in errors(look(model=folder)))


TEMPLATE = (ROOT / "src/titer/assets/tiny/aligned/chat_template.jinja").read_text("utf-8")
PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def templated(folder: Path, template: str) -> str:
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_a_template_without_generation_prompt(look, saved):
    template = "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    (problem,) = errors(look(model=templated(saved(), template)))
    assert "no generation prompt" in problem and "'<|assistant|>'" in problem


def with_system(tmp_path):
    rows = [
        {"prompt": f"vexar {a} {b}", "response": "bal", "refusal": "no", "system": "be polite"}
        for a in ("bal", "bel", "bil", "bol")
        for b in ("dal", "del", "dil", "dol")
    ]
    file = tmp_path / "system.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    pool = {"source": "jsonl", "options": {"path": str(file)}, "parts": {"attack": 16}}
    return {"pools.own": pool}


@pytest.mark.parametrize("how", ["refuses", "leaves out"])
def test_system_turns(look, saved, small_study, tmp_path, how):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    ignoring = PLAIN.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
    template = refusing + PLAIN if how == "refuses" else ignoring
    pools = small_study().model_dump(mode="json")["pools"]
    pools |= {"own": with_system(tmp_path)["pools.own"]}
    seen = look(
        model=templated(saved(), template),
        pools=pools,
        resistance={"data": {"harmful": "own/attack"}},
    )
    found = errors(seen) if how == "refuses" else notices(seen)
    assert any(how in f and "system turns" in f and "own/attack" in f for f in found)
    plain = look(model=templated(saved(), template))
    assert not any("system turns" in f.problem for f in plain.findings), "no text has any"


GENERATED = {"measure": "compliance_generated", "part": "harm/judge"}


def test_no_stop_token(look, saved):
    folder = saved(tokenizer={"eos_token": None}, eos_token_id=None, generation={})
    (problem,) = errors(look(model=str(folder), measure=GENERATED))
    assert "has no stop token" in problem and "compliance_generated" in problem
    seen = look(model=str(folder))
    assert not errors(seen) and "has no stop token" in notices(seen)[0]


def test_a_turn_that_ends_with_no_stop_token(look, saved):
    template = PLAIN.replace("<|end|>", "<|system|>")
    (problem,) = errors(look(model=templated(saved(), template), measure=GENERATED))
    assert "ends a turn with '<|system|>'" in problem and "none of its stop tokens" in problem


def test_openings_the_tokenizer_cannot_write(look):
    likelihood = {"measure": "compliance_likelihood", "part": "harm/judge"}
    (problem,) = notices(look(measure=likelihood))
    assert "tiny:aligned does not know 3 of the 20 openings" in problem and "'Title'" in problem
    assert "compliance_likelihood" in problem


def test_openings_the_tokenizer_writes_with_nothing(look, monkeypatch):
    from titer.measures import compliance

    monkeypatch.setattr(compliance, "COMPLIANCE_OPENINGS", ("", "Sure"))
    likelihood = {"measure": "compliance_likelihood", "part": "harm/judge"}
    assert any("such as ''" in e for e in errors(look(measure=likelihood)))


def test_a_tokenizer_of_another_model(look, saved):
    folder = str(saved(vocab_size=200))
    found = errors(look(model=folder, weights="none"))
    assert any("has 256 tokens, but its embedding only 200 rows" in e for e in found)
    with pytest.raises(AssetError, match="does not belong"):
        look(model=folder)


def test_prompts_that_leave_no_room(look):
    found = errors(look(runtime={"max_length": 8}))
    assert any("full_sft leaves out 192 of the 192 examples of harm/attack" in e for e in found)


# -- further models and judges --------------------------------------------------------------------


def test_a_further_model_that_is_missing(look, tmp_path):
    (tmp_path / "base").mkdir()
    defended = {"name": "lox", "defense": "lox", "steps": 1}
    seen = look(candidates=["none", defended], models={"base": str(tmp_path / "base")})
    found = errors(seen)
    assert found and all("lox" in e for e in found) and "config.json" in found[0]


def test_a_further_model_nobody_asks_for(look):
    (problem,) = notices(look(models={"base": "tiny:base"}))
    assert "no method of the study asks for the further model base" in problem


def judged():
    judge = {"name": "chat", "settings": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}
    settings = {"judge": judge, "max_new_tokens": 8}
    return {"measure": "judged_harm", "part": "harm/judge", "settings": settings}


def test_a_judge_that_cannot_be_reached(look):
    (problem,) = errors(look(measure=judged()))
    assert "the judge chat of judged_harm gave no judgement" in problem


def test_a_judge_whose_key_is_missing(look, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    measure = judged()
    measure["settings"]["judge"]["settings"]["key_variable"] = "NO_SUCH_KEY"
    (problem,) = errors(look(measure=measure))
    assert "the judge chat of judged_harm cannot be asked" in problem and "NO_SUCH_KEY" in problem


def test_a_judge_is_asked_once(look, monkeypatch):
    from titer.judges.http import ChatJudge

    asked = []
    monkeypatch.setattr(ChatJudge, "judge", lambda self, pairs: asked.append(pairs) or [0.0])
    seen = look(measure=judged(), attacks=[FULL, "weight_noise"])
    assert not seen.findings and len(asked) == 1 and seen.timings.judges


# -- without weights ------------------------------------------------------------------------------


def test_without_weights_the_configuration_is_looked_at(look, saved, monkeypatch):
    folder = str(saved("mamba"))
    monkeypatch.setattr(rooms, "is_local", lambda ref: False)
    monkeypatch.setattr(tryout, "load_model", lambda ref: pytest.fail("a model was loaded"))
    seen = look(model=folder, attacks=[FULL, LORA], runtime={"max_length": 8})
    assert any("lora_sft cannot be run on" in e for e in errors(seen))
    assert any("leaves out" in e for e in errors(seen))
    assert "no step and no reading was tried" in seen.unchecked[0] and not seen.tried
    expected = sum(p.numel() for p in build("mamba", vocab_size=256).parameters())
    assert list(seen.parameters.values()) == [expected]


def test_without_anything_it_is_said(look, monkeypatch):
    monkeypatch.setattr(rooms, "is_local", lambda ref: False)
    monkeypatch.setattr(rooms, "outline", lambda ref: None)
    seen = look()
    assert "nothing is known of tiny:aligned" in seen.unchecked[0]
    assert list(seen.parameters.values()) == [None]


def test_no_preflight_loads_nothing(look, monkeypatch):
    monkeypatch.setattr(tryout, "load_model", lambda ref: pytest.fail("a model was loaded"))
    seen = look(weights="none", measure=judged())
    assert not errors(seen) and "no preflight was asked for" in seen.unchecked[0]


def test_architectures_find_their_way_without_numbers(look, saved, monkeypatch):
    """What needs numbers to begin is passed over, not told as trouble."""
    monkeypatch.setattr(rooms, "is_local", lambda ref: False)
    seen = look(
        model=str(saved("llama")),
        attacks=[
            FULL,
            LORA,
            "soft_prompt",
            "prune",
            {
                "attack": "refusal_ablation",
                "settings": {"examples": 8, "validation": 4},
                "data": {"harmful": "harm/attack", "harmless": "harmless/defense"},
            },
        ],
    )
    assert not errors(seen)


# -- what the estimate makes of it ----------------------------------------------------------------


def test_times_reach_the_estimate(look, small_study):
    seen = look()
    study = small_study(candidates=["none"])
    plan = complete_plan(study, Pools(study))
    timed = {key: t for (_, key), t in seen.timings.methods.items()}
    assert all(t.first > 0 and t.later and t.flops > 0 for t in timed.values())
    assert all(r.items and r.seconds > 0 for r in seen.timings.readings.values())
    keys = {method_key(p) for p in plan.cells if p.cell.method}
    assert not keys & timed.keys(), "another batch size is another method"
    sizes = seen.parameters
    assert estimate(study, plan, sizes, throughput=1e9, timings=seen.timings).seconds


def test_an_outline_knows_what_the_files_say(saved):
    folder = saved("gpt2")
    known = outline(ModelRef.model_validate(str(folder)))
    assert (known.context, known.rows, known.tokenizer.pad_token) == (64, 256, "<|pad|>")
    assert known.parameters == sum(p.numel() for p in build("gpt2", vocab_size=256).parameters())
