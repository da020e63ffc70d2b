"""`titer evaluate M --candidate M_STAR`: the releaser's case, two models that exist already."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.battery import battery, misfits
from titer.cli.console import err, out, print_json
from titer.cli.options import (
    FILE,
    Device,
    HarmMeasure,
    MaxLength,
    Precision,
    harm_measure_of,
    in_options,
    runtime_of,
    sayer,
    text_of,
)
from titer.cli.rates import rate_lines
from titer.cli.resume import command_line, refuse_another, stored_study
from titer.cli.run import perform
from titer.errors import OverlapError, StudyError, UsageError

if TYPE_CHECKING:
    from titer.data.pools import Pools
    from titer.study.spec import Study


OPTIONS = {"attack": "--attack-data", "judge": "--eval-prompts", "benign": "--benign-data"}
"""Which option gives which pool."""
MEASURES = ("compliance_likelihood", "compliance_generated", "exact_answer")
"""Measures of harm that this command knows how to set up."""


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="The undefended model M: a directory, hub:ID, tiny:NAME or package:NAME."
        ),
    ],
    candidate: Annotated[
        list[str],
        typer.Option(
            help="A defended model M*, named likewise, as MODEL or NAME=MODEL. May be given "
            "several times."
        ),
    ],
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="An attack of the battery, as NAME or NAME:key=value,…; repeatable. Default: "
            "full_sft and lora_sft. `titer list attacks` shows all."
        ),
    ] = None,
    attack_data: Annotated[
        Path | None,
        typer.Option(
            help=f"{FILE} prompt and response; default: AdvBench prompts with content-free "
            "compliance."
        ),
    ] = None,
    eval_prompts: Annotated[
        Path | None,
        typer.Option(
            help=f"{FILE} prompt (and response for --harm-measure exact_answer); default: "
            "StrongREJECT."
        ),
    ] = None,
    benign_data: Annotated[
        Path | None,
        typer.Option(
            help=f"{FILE} harmless prompt and response, for stability and trainability; default: "
            "Alpaca sample."
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option(min=1, help="The attacker's budget T in optimizer steps.")
    ] = 64,
    phi: Annotated[
        float, typer.Option(help="Harmfulness at which a model counts as broken.")
    ] = 0.5,
    phi_reason: Annotated[
        str, typer.Option(help="Why φ is what it is; the guidelines card quotes it.")
    ] = "",
    harm_measure: HarmMeasure = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Confirmation seeds per attack: 5 demonstrate, 29 are release-grade."
        ),
    ] = 5,
    delta: Annotated[
        float, typer.Option(help="The claim is about this quantile over attack seeds.")
    ] = 0.5,
    full_lr: Annotated[
        list[float] | None,
        typer.Option(
            help="Learning rates full_sft searches over; repeatable. Default: 1e-5 to 1e-2, in "
            "steps of about 3."
        ),
    ] = None,
    lora_lr: Annotated[
        list[float] | None,
        typer.Option(
            help="Learning rates lora_sft searches over; repeatable. Default: 1e-4 to 1e-1, in "
            "steps of about 3."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Replies to harmful prompts to keep, before and after each attack (one seed). "
            "No report shows them unless it is asked to. May be harmful text.",
        ),
    ] = 0,
    max_length: MaxLength = 128,
    precision: Precision = "fp32",
    device: Device = "auto",
    write: Annotated[
        Path | None, typer.Option(help="Only write the study to this YAML file; do not run it.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run directory (default: runs/evaluate-M-vs-CANDIDATE)."),
    ] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Take finished records over from this run directory.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1)] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Up to which budget may M* be claimed to resist, and what did it cost? Writes a study for
    existing models, runs it. The same command goes on with what was interrupted.

    The study is kept in the run directory as study.json; with --write it can be read and changed
    first.
    """
    from titer.study.releaser import check_exists, releaser_study
    from titer.verdicts.design.attainable import attainable

    check_exists(model, "model")
    say, harm_measure = sayer(quiet or as_json), harm_measure_of(model, harm_measure)
    _refuse_measure(harm_measure)
    answer = ("response",) if harm_measure == "exact_answer" else ()
    make: Callable[..., Study] = partial(
        releaser_study,
        model=model,
        candidates=candidate,
        attack_data=text_of(attack_data, "attack_data", say, ("response",)),
        eval_prompts=text_of(eval_prompts, "eval_prompts", say, answer),
        benign_data=text_of(benign_data, "benign_data", say, ("response",)),
        attacks=battery(attack, batch_size=batch_size, full_lr=full_lr, lora_lr=lora_lr),
        budget=budget,
        phi=phi,
        phi_reason=phi_reason,
        harm_measure=harm_measure,
        seeds=seeds,
        delta=delta,
        full_lr=full_lr,
        lora_lr=lora_lr,
        batch_size=batch_size,
        samples=samples,
        **runtime_of(max_length, precision, device),
    )
    study = make()
    best = attainable(study)
    if write:
        _write(study, write, best, say, as_json)
        return
    directory = run or Path("runs") / study.name
    study = _begun(make, study, directory) or _fitting(make, study, say)
    say(f"Best verdict attainable: {best}")
    say(f"Run directory: {directory}")
    for gone in study.resistance.left_out:
        err.print(f"Left out: {gone.attack} ({gone.reason}).", markup=False)
    try:
        perform(
            study,
            directory,
            reuse=reuse,
            workers=workers,
            threads=threads,
            transcripts=False,
            quiet=quiet,
            as_json=as_json,
        )
    except KeyboardInterrupt:
        err.print(
            f"Stopped. What is finished is in {directory}. To go on, here: {command_line(context)}",
            markup=False,
        )
        raise
    except OverlapError as error:
        raise in_options(error, OPTIONS) from error
    if not as_json:
        _print_found(directory, bool(samples))


def _refuse_measure(name: str) -> None:
    """Raises UsageError for a measure of harm that needs more than its name."""
    if name not in MEASURES:
        raise UsageError(
            "this command does not read harm so",
            field="--harm-measure",
            value=name,
            expected=f"one of {', '.join(MEASURES)}",
            remedy="for another measure, --write the study, name it there, and `titer run` it",
        )


def _write(study: Study, file: Path, best: str, say: Callable[[str], None], as_json: bool) -> None:
    """Write the study down. It is not tried on the models: `titer check` does that."""
    from titer.records.files import write_atomically

    if file.exists():
        raise UsageError(
            "this file exists already",
            field="--write",
            value=str(file),
            expected="a new file",
        )
    import yaml

    text = yaml.safe_dump(
        study.model_dump(mode="json", exclude_defaults=True),
        sort_keys=False,
        allow_unicode=True,
    )
    write_atomically(file, text)
    if as_json:
        print_json({"study": str(file), "digest": study.digest, "attainable": best})
    say(f"Written: {file}. Best verdict attainable: {best}")
    say(f"Check it with `titer check {file}`, run it with `titer run {file}`.")


def _begun(make: Callable[..., Study], study: Study, directory: Path) -> Study | None:
    """The study of an earlier call of the same command, with what was left out then. Raises
    UsageError if the directory holds another one; gives None if it holds none.
    """
    stored = stored_study(directory)
    if stored is None:
        return None
    with suppress(StudyError):  # what was left out there may not fit this battery
        again = make(left_out=stored.resistance.left_out)
        if again.digest == stored.digest:
            return again
    refuse_another(study, stored, directory)
    return None


def _fitting(make: Callable[..., Study], study: Study, say: Callable[[str], None]) -> Study:
    """The study without the attacks that cannot be run on its models."""
    try:
        pools = _pools(study)
    except OverlapError as error:
        raise in_options(error, OPTIONS) from error
    gone = misfits(study, pools, lambda what: say(f"trying {what}"), sayer(False))
    return make(left_out=gone) if gone else study


def _pools(study: Study) -> Pools:
    from titer.data.pools import Pools

    return Pools(study)


def _print_found(directory: Path, samples: bool) -> None:
    """What the search found, and where the samples are."""
    from titer.records.store import RunStore

    for line in rate_lines(RunStore(directory).view()):
        out.print(line, markup=False)
    if samples:
        out.print(
            f"Samples of replies: {directory / 'transcripts'}; `titer report {directory} "
            "--show-transcripts` shows them in the report",
            markup=False,
        )
