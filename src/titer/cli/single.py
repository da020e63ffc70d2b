"""`titer attack` and `titer defend`: one method on one model, through the engine of a study."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.console import err, out, print_json
from titer.cli.options import (
    FILE,
    Device,
    FurtherModels,
    HarmMeasure,
    MaxLength,
    Plugins,
    Precision,
    Settings,
    harm_measure_of,
    in_options,
    runtime_of,
    sayer,
    settings_of,
)
from titer.cli.single_study import OPTIONS, single_study
from titer.errors import OverlapError, RunError, TiterError, UsageError

if TYPE_CHECKING:
    from titer.engine.run_cell import CellResult
    from titer.study.spec import Study

Model = Annotated[str, typer.Argument(help="A model directory, hub:ID, tiny:NAME or package:NAME.")]
Data = Annotated[
    Path | None,
    typer.Option(help=f"{FILE} harmful prompt, response and refusal; the tiny model needs none."),
]
Harmless = Annotated[
    Path | None, typer.Option(help=f"{FILE} harmless prompt and response; optional.")
]


def register(app: typer.Typer) -> None:
    app.command("attack")(attack_command)
    app.command("defend")(defend_command)


def attack_command(
    model: Model,
    method: Annotated[str, typer.Option(help="The attack.")] = "full_sft",
    settings: Settings = None,
    data: Data = None,
    harmless: Harmless = None,
    eval_prompts: Annotated[
        Path | None, typer.Option(help=f"{FILE} held-out prompts harm is read on.")
    ] = None,
    harm_measure: HarmMeasure = None,
    steps: Annotated[int, typer.Option(min=1, help="Budget in optimizer steps.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_length: MaxLength = 128,
    precision: Precision = "fp32",
    device: Device = "auto",
    keep_weights: Annotated[
        Path | None,
        typer.Option(help="Save the attacked weights here. A jailbroken model: handle with care."),
    ] = None,
    further_models: FurtherModels = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack one model once and print harm at every probe. A look, not a verdict: `titer run`
    judges.
    """
    if keep_weights:
        _must_be_new(keep_weights, "--keep-weights")
    study = single_study(
        model,
        attack={"attack": method, "settings": settings_of(settings)},
        data=data,
        harmless=harmless,
        eval_prompts=eval_prompts,
        measure=harm_measure_of(model, harm_measure),
        steps=steps,
        seed=seed,
        further_models=further_models,
        plugins=plugins,
        runtime=runtime_of(max_length, precision, device),
        say=sayer(as_json),
    )
    result = _run(study, "attack", as_json, keep_weights)
    record = result.record
    construct = record.measures["harm"].harm_construct
    rows = [
        {"step": p.step, "flops": p.cost.flops, **{r.label: r.value for r in p.readings}}
        for p in record.probes
    ]
    if as_json:
        print_json({"outcome": record.outcome, "construct": construct, "probes": rows})
        return
    out.print(f"{method} on {model}, seed {seed}; construct: {construct}", markup=False)
    for row in rows:
        harm = "no value" if row["harm"] is None else f"{row['harm']:.3f}"
        out.print(f"  step {row['step']:>6}   harm {harm}   {row['flops']:.3g} FLOPs", markup=False)
    out.print(f"{record.outcome.replace('_', ' ')}; {record.cost.seconds:.1f} s", markup=False)


def defend_command(
    model: Model,
    to: Annotated[Path, typer.Option("--out", help="Directory for the defended model.")],
    method: Annotated[str, typer.Option(help="The defense.")] = "sft_refusal",
    settings: Settings = None,
    data: Data = None,
    harmless: Harmless = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_length: MaxLength = 128,
    precision: Precision = "fp32",
    device: Device = "auto",
    further_models: FurtherModels = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Apply one defense to one model and save the result in transformers' layout."""
    _must_be_new(to, "--out")
    study = single_study(
        model,
        defense={"name": method, "settings": settings_of(settings)},
        data=data,
        harmless=harmless,
        steps=steps,
        seed=seed,
        further_models=further_models,
        plugins=plugins,
        runtime=runtime_of(max_length, precision, device),
        say=sayer(as_json),
    )
    record = _run(study, "defense", as_json, to).record
    first, last = (record.loss[0], record.loss[-1]) if record.loss else (None, None)
    cost = record.cost
    if as_json:
        print_json(
            {
                "out": str(to),
                "steps": cost.steps,
                "flops": cost.flops,
                "loss_first": first,
                "loss_last": last,
            }
        )
        return
    loss = "no loss" if first is None or last is None else f"loss {first:.3f} → {last:.3f}"
    out.print(
        f"{method}: {cost.steps} step(s), {cost.flops:.3g} FLOPs, {loss}; saved in {to}",
        markup=False,
    )


def _must_be_new(path: Path, option: str) -> None:
    """Saving a model replaces its directory, so nothing of the user's may be there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            "there is something at this path already",
            field=option,
            value=str(path),
            expected="a new or empty directory",
        )


def _run(study: Study, purpose: str, quiet: bool, to: Path | None) -> CellResult:
    """Run the study's one cell of this purpose; save the model it ends with if asked to. What
    libraries raise becomes a RunError."""
    from titer.data.pools import Pools
    from titer.engine.planning import plan
    from titer.records.store import RunStore
    from titer.runners.cell_runner import CellRunner, save_safely, whole
    from titer.runners.placement import place

    try:
        pools = Pools(study)
    except OverlapError as error:
        raise in_options(error, OPTIONS) from error
    cells = plan(study, pools, lambda digest: None).cells
    planned = next(p for p in cells if p.roles[0].purpose == purpose)
    # Nothing is kept beside the run: the weights go straight to where they are wanted.
    planned = planned.model_copy(update={"cell": planned.cell.model_copy(update={"keep": False})})
    device = place(study.runtime.device).device(0)
    with tempfile.TemporaryDirectory(prefix="titer-") as scratch:
        runner = CellRunner(RunStore(scratch), pools, study.runtime, device)
        try:
            result = runner.run(planned, _progress(quiet))
        except (TiterError, OSError):
            raise
        except (Exception, SystemExit) as error:
            method = planned.cell.method
            raise RunError(
                f"the method failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
                field="method",
                value=method.name if method else None,
                expected="to finish",
                remedy="change its settings; if memory ran out, use a smaller batch_size",
            ) from error
        if not quiet and err.is_terminal:
            err.print()
        if to and result.bundle:
            save_safely(whole(result.bundle), result.bundle.tokenizer, to)
    return result


def _progress(quiet: bool) -> Callable[[int, int], None] | None:
    if quiet or not err.is_terminal:
        return None
    return lambda done, total: print(f"\r{done}/{total} steps", end="", file=err.file, flush=True)
