"""The smallest study around one method, for `titer attack` and `titer defend`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from titer.cli.options import load_plugin_files, pairs, text_of
from titer.errors import UsageError

if TYPE_CHECKING:
    from titer.methods.method import Method
    from titer.study.spec import Study

TRAIN = {"train": 0.999}
OPTIONS = {"harm": "--data", "eval": "--eval-prompts", "harmless": "--harmless"}
"""Which option gives which pool."""


def single_study(
    model: str,
    *,
    attack: dict[str, Any] | None = None,
    defense: dict[str, Any] | None = None,
    data: Path | None,
    harmless: Path | None,
    eval_prompts: Path | None = None,
    measure: str = "exact_answer",
    steps: int,
    seed: int,
    further_models: list[str] | None,
    plugins: list[Path] | None,
    runtime: dict[str, Any],
    say: Callable[[str], None],
) -> Study:
    """One method on one model, with the text that is given or the tiny model's own. Raises
    UsageError, StudyError.
    """
    from titer.study.load import load_study, resolved_model
    from titer.study.releaser import check_exists, own_pool

    check_exists(model, "model")
    further = dict(pairs(further_models, "--further-model", "for example base=./m_base"))
    for name in further.values():
        check_exists(name, "--further-model")
    plugin_files = load_plugin_files(plugins)
    method = _method(attack, defense, further)
    tiny = model.startswith("tiny:")
    if not tiny and data is None:
        raise UsageError(
            "this model needs data",
            field="--data",
            value=None,
            expected="a JSONL, JSON, CSV or Parquet file",
            remedy="give rows with prompt and response, and refusal where a defense trains on it",
        )
    settings = {"reads": "harm"} if measure == "exact_answer" else {}
    read = _read_by(measure, settings)
    trained, beside = (_answers(method, slot) for slot in ("harmful", "harmless"))
    harmful = text_of(data, "--data", say, trained | (set() if eval_prompts else read))
    held_out = text_of(eval_prompts, "--eval-prompts", say, read)
    benign = text_of(harmless, "--harmless", say, beside)
    pools: dict[str, Any] = {}
    if harmful is None:
        pools["harm"] = {
            "source": "tiny_world",
            "options": {"group": "harm", "count": 1200},
            "parts": {"train": 600, "judge": 300, "confirm": 300},
        }
    else:
        shares = {"train": 0.6, "judge": 0.2, "confirm": 0.199}
        pools["harm"] = own_pool(harmful, "--data", shares if held_out is None else TRAIN)
    judge = "harm"
    if held_out is not None:
        judge = "eval"
        pools["eval"] = own_pool(held_out, "--eval-prompts", {"judge": 0.5, "confirm": 0.499})
    use: dict[str, Any] = {"harmful": "harm/train"}
    if benign is not None:
        pools["harmless"] = own_pool(benign, "--harmless", TRAIN)
    elif tiny and (defense or _needs_harmless(method)):
        pools["harmless"] = {
            "source": "tiny_world",
            "options": {"group": "harmless", "count": 600},
            "parts": {"train": 600},
        }
    if "harmless" in pools:
        use["harmless"] = "harmless/train"
    candidates: list[Any] = ["none"]
    if defense:
        candidates.append({"name": "defended", "defense": defense, "steps": steps, "seed": seed})
    return load_study(
        {
            "name": "single",
            "threat_model": "open_weights",
            "model": resolved_model(model),
            "models": {name: resolved_model(ref) for name, ref in further.items()},
            "plugins": plugin_files,
            "pools": pools,
            "defense_data": use,
            "candidates": candidates,
            "resistance": {
                "attacks": [attack or "no_attack"],
                "data": {} if defense else use,
                "budget": 1 if defense else steps,
                "seeds": [seed],
                "confirm": f"{judge}/confirm",
                "sensitivity": [1.0],
                "phi": 1.0,
                "harm": {"measure": measure, "part": f"{judge}/judge", "settings": settings},
            },
            "runtime": runtime,
        }
    )


def _method(
    attack: dict[str, Any] | None, defense: dict[str, Any] | None, further: Mapping[str, str]
) -> Method:
    """The method with its settings. Raises UnknownNameError, StudyError; UsageError if it reads a
    further model that is not given."""
    from titer.methods.registry import resolve
    from titer.study.cell import CONTROL_MODEL, PARENT

    if attack:
        method = resolve("attack", attack["attack"], attack["settings"], field="--method")
    else:
        given = defense or {}
        threat = "open_weights"
        method = resolve(
            "defense", given["name"], given["settings"], field="--method", threat_model=threat
        )
    for name in method.wanted():
        if name not in (PARENT, CONTROL_MODEL, *further):
            raise UsageError(
                f"{method.name} needs a further model",
                field="--further-model",
                value=None,
                expected=f"{name}=MODEL",
            )
    return cast("Method", method)


def _answers(method: Method, slot: str) -> set[str]:
    """The answers a method needs to text of this slot."""
    needs = (need.partition(".") for need in method.needed())
    return {answer for of, _, answer in needs if answer and of in ("", slot)}


def _read_by(measure: str, settings: dict[str, Any]) -> set[str]:
    """The answers a measure compares with."""
    from titer.measures.registry import resolve_measure

    needed = resolve_measure(measure, settings, field="--harm-measure").needed()
    return {"response", "refusal"} & set(needed)


def _needs_harmless(method: Method) -> bool:
    """Whether an attack cannot do without harmless text; others get none unless it is given, for
    harmless pairs change what a fine-tuning attack is."""
    return any(need.partition(".")[0] == "harmless" for need in method.needed())
