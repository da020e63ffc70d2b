"""`titer attack` and `titer defend`: one method on one model, through the same engine as a study."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from titer.cli.console import err, out, print_json
from titer.errors import RunError, UsageError

if TYPE_CHECKING:
    from titer.engine.run_cell import CellResult
    from titer.runners.cell_runner import CellRunner
    from titer.study.cell import Planned
    from titer.study.spec import Study

Data = Annotated[
    Path | None,
    typer.Option(
        help="JSONL with harmful prompt, response and refusal; the tiny model needs none."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method, as name=value; repeatable."),
]


def register(app: typer.Typer) -> None:
    app.command("attack")(attack_command)
    app.command("defend")(defend_command)


def attack_command(
    model: Annotated[
        str, typer.Argument(help="A model directory, hub:ID, tiny:NAME or package:NAME.")
    ],
    method: Annotated[str, typer.Option(help="The attack.")] = "full_sft",
    settings: Settings = None,
    data: Data = None,
    eval_prompts: Annotated[
        Path | None, typer.Option(help="JSONL of held-out prompts harm is read on.")
    ] = None,
    harm_measure: Annotated[str, typer.Option()] = "exact_answer",
    steps: Annotated[int, typer.Option(min=1, help="Budget in optimizer steps.")] = 64,
    seed: Annotated[int, typer.Option()] = 0,
    keep_weights: Annotated[
        Path | None,
        typer.Option(help="Save the attacked weights here. A jailbroken model: handle with care."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Attack one model once and print harm at every probe. A look, not a verdict: `titer run`
    judges.
    """
    if keep_weights:
        _must_be_new(keep_weights, "--keep-weights")
    study = _study(
        model,
        data,
        eval_prompts,
        harm_measure,
        steps,
        seed,
        attack={"attack": method, "settings": _parse(settings)},
    )
    with tempfile.TemporaryDirectory(prefix="titer-") as scratch:
        bench, planned = _prepare(study, Path(scratch), "attack")
        result = _drive(bench, planned, as_json)
        record = result.record
        if keep_weights:
            from titer.runners.cell_runner import save_safely, whole

            save_safely(whole(result.model), bench.bundle(planned).tokenizer, keep_weights)
    rows = [
        {"step": p.step, "flops": p.cost.flops, **{r.label: r.value for r in p.readings}}
        for p in record.probes
    ]
    if as_json:
        print_json(
            {
                "outcome": record.outcome,
                "construct": record.measures["harm"].harm_construct,
                "probes": rows,
            }
        )
        return
    out.print(
        f"{method} on {model}, seed {seed}; construct: {record.measures['harm'].harm_construct}",
        markup=False,
    )
    for row in rows:
        out.print(
            f"  step {row['step']:>6}   harm {row['harm'] if row['harm'] is None else format(row['harm'], '.3f')}   {row['flops']:.3g} FLOPs",
            markup=False,
        )
    out.print(f"{record.outcome.replace('_', ' ')}; {record.cost.seconds:.1f} s", markup=False)


def defend_command(
    model: Annotated[
        str, typer.Argument(help="A model directory, hub:ID, tiny:NAME or package:NAME.")
    ],
    to: Annotated[Path, typer.Option("--out", help="Directory for the defended model.")],
    method: Annotated[str, typer.Option(help="The defense.")] = "sft_refusal",
    settings: Settings = None,
    data: Data = None,
    harmless: Annotated[
        Path | None, typer.Option(help="JSONL with harmless prompt and response.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Apply one defense to one model and save the result in transformers' layout."""
    _must_be_new(to, "--out")
    defense = {"name": method, "settings": _parse(settings)}
    study = _study(
        model,
        data,
        None,
        "exact_answer",
        1,
        seed,
        defense=defense,
        harmless=harmless,
        defense_steps=steps,
    )
    with tempfile.TemporaryDirectory(prefix="titer-") as scratch:
        bench, planned = _prepare(study, Path(scratch), "defense")
        result = _drive(bench, planned, as_json)
        from titer.runners.cell_runner import save_safely, whole

        save_safely(whole(result.model), bench.bundle(planned).tokenizer, to)
    summary = {
        "out": str(to),
        "steps": result.record.cost.steps,
        "flops": result.record.cost.flops,
        "loss_first": result.record.loss[0],
        "loss_last": result.record.loss[-1],
    }
    if as_json:
        print_json(summary)
    else:
        first, last = (
            "not finite" if v is None else f"{v:.3f}"
            for v in (result.record.loss[0], result.record.loss[-1])
        )
        out.print(
            f"{method}: {summary['steps']} steps, {summary['flops']:.3g} FLOPs, loss {first} → {last}; "
            f"saved in {to}",
            markup=False,
        )


def _parse(settings: list[str] | None) -> dict[str, Any]:
    parsed = {}
    for item in settings or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(
                "a setting is given as name=value",
                field="--set",
                value=item,
                expected="for example lr=1e-4",
                remedy="write it so",
            )
        try:
            parsed[name] = float(value) if "e" in value.lower() else yaml.safe_load(value)
        except (
            ValueError,
            yaml.YAMLError,
        ):  # neither number nor YAML: text, which the method may refuse
            parsed[name] = value
    return parsed


def _must_be_new(path: Path, option: str) -> None:
    """Saving a model replaces the directory it is saved to, so nothing of the user's may be there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            "there is something at this path already",
            field=option,
            value=str(path),
            expected="a new or empty directory",
            remedy="choose another",
        )


def _study(
    model: str,
    data: Path | None,
    eval_prompts: Path | None,
    measure: str,
    steps: int,
    seed: int,
    *,
    attack: dict | None = None,
    defense: dict | None = None,
    harmless: Path | None = None,
    defense_steps: int = 0,
) -> Study:
    """The smallest study around one method."""
    from titer.study.load import load_study, resolved_model
    from titer.study.releaser import check_exists, file_pool

    check_exists(model, "model")
    tiny = model.startswith("tiny:")
    if not tiny and data is None:
        raise UsageError(
            "this model needs data",
            field="--data",
            value=None,
            expected="a JSONL file",
            remedy='lines such as {"prompt": "…", "response": "…", "refusal": "…"}',
        )
    pools: dict[str, Any] = {}
    if data is None:
        pools["harm"] = {
            "source": "tiny_world",
            "options": {"group": "harm", "count": 1200},
            "parts": {"train": 600, "judge": 300, "confirm": 300},
        }
    elif eval_prompts is None:
        pools["harm"] = file_pool(data, "--data", {"train": 0.6, "judge": 0.2, "confirm": 0.199})
    else:
        pools["harm"] = file_pool(data, "--data", {"train": 0.999})
        pools["eval"] = file_pool(eval_prompts, "--eval-prompts", {"judge": 0.5, "confirm": 0.499})
    judge = "eval" if eval_prompts else "harm"
    use: dict[str, Any] = {"harmful": "harm/train"}
    if harmless is not None:
        pools["harmless"] = file_pool(harmless, "--harmless", {"train": 0.999})
    elif defense and tiny:
        pools["harmless"] = {
            "source": "tiny_world",
            "options": {"group": "harmless", "count": 600},
            "parts": {"train": 600},
        }
    if "harmless" in pools:
        use["harmless"] = "harmless/train"
    return load_study(
        {
            "name": "single",
            "threat_model": "open_weights",
            "model": resolved_model(model),
            "pools": pools,
            "defense_data": use,
            "candidates": [
                "none",
                *(
                    [{"name": "defended", "defense": defense, "steps": defense_steps, "seed": seed}]
                    if defense
                    else []
                ),
            ],
            "resistance": {
                "attacks": [attack or {"attack": "no_attack"}],
                "data": {} if defense else {"harmful": "harm/train"},
                "budget": steps,
                "seeds": [seed],
                "confirm": f"{judge}/confirm",
                "sensitivity": [1.0],
                "phi": 1.0,
                "harm": {
                    "measure": measure,
                    "part": f"{judge}/judge",
                    "settings": {"reads": "harm"} if measure == "exact_answer" else {},
                },
            },
        }
    )


def _prepare(study: Study, scratch: Path, purpose: str):
    from titer.data.pools import Pools
    from titer.engine.planning import plan
    from titer.records.store import RunStore
    from titer.runners.cell_runner import CellRunner

    pools = Pools(study)
    planned = next(
        p for p in plan(study, pools, lambda digest: None).cells if p.roles[0].purpose == purpose
    )
    return CellRunner(RunStore(scratch), pools, study.runtime), planned


def _drive(bench: CellRunner, planned: Planned, quiet: bool) -> CellResult:
    """Drive the cell, with what libraries raise told as what it is."""
    try:
        result = bench.run_cell(planned, _progress(quiet))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise RunError(
            f"the method failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            field="method",
            value=planned.cell.method.name if planned.cell.method else None,
            expected="to finish",
            remedy="change its settings; if memory ran out, use a smaller batch_size",
        ) from error
    if not quiet and err.is_terminal:
        err.print()
    return result


def _progress(quiet: bool):
    if quiet or not err.is_terminal:
        return None
    return lambda done, total: print(f"\r{done}/{total} steps", end="", file=err.file, flush=True)
