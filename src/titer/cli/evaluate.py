"""`titer evaluate M --candidate M_STAR`: the releaser's case, two models that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from titer.cli.console import err, print_json
from titer.cli.run import perform
from titer.errors import OverlapError, UsageError


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(
            help="The undefended model M: a directory, hub:ID, tiny:NAME or package:NAME."
        ),
    ],
    candidate: Annotated[
        list[str],
        typer.Option(help="A defended model M*, named likewise. May be given several times."),
    ],
    attack_data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with prompt and response; default: AdvBench prompts with content-free "
            "compliance."
        ),
    ] = None,
    eval_prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with prompt (and response for --harm-measure exact_answer); default: "
            "StrongREJECT."
        ),
    ] = None,
    benign_data: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with harmless prompt and response, for stability and trainability; "
            "default: Alpaca sample."
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
    harm_measure: Annotated[
        str, typer.Option(help="compliance_likelihood, compliance_generated or exact_answer.")
    ] = "compliance_likelihood",
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
            help="Learning rates full_sft searches over; repeatable. Default: 1e-5, 3e-5, 1e-4."
        ),
    ] = None,
    lora_lr: Annotated[
        list[float] | None,
        typer.Option(
            help="Learning rates lora_sft searches over; repeatable. Default: 1e-4, 3e-4, 1e-3."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a training sequence.")] = 128,
    precision: Annotated[str, typer.Option(help="fp32 or bf16_autocast.")] = "fp32",
    write: Annotated[
        Path | None, typer.Option(help="Only write the study to this YAML file; do not run it.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory (default: runs/evaluate).")
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
    existing models, runs it.

    The study is kept in the run directory as study.json; with --write it can be read and changed
    first.
    """
    from titer.records.store import write_atomically
    from titer.study.releaser import releaser_study
    from titer.verdicts.design.attainable import attainable

    study = releaser_study(
        model=model,
        candidates=candidate,
        attack_data=attack_data,
        eval_prompts=eval_prompts,
        benign_data=benign_data,
        budget=budget,
        phi=phi,
        phi_reason=phi_reason,
        harm_measure=harm_measure,
        seeds=seeds,
        delta=delta,
        full_lr=full_lr or (1e-5, 3e-5, 1e-4),
        lora_lr=lora_lr or (1e-4, 3e-4, 1e-3),
        batch_size=batch_size,
        max_length=max_length,
        precision=precision,
    )
    best = attainable(study)
    if write:
        if write.exists():
            raise UsageError(
                "this file exists already",
                field="--write",
                value=str(write),
                expected="a new file",
            )
        text = yaml.safe_dump(
            study.model_dump(mode="json", exclude_defaults=True),
            sort_keys=False,
            allow_unicode=True,
        )
        write_atomically(write, text)
        if as_json:
            print_json({"study": str(write), "digest": study.digest, "attainable": best})
        elif not quiet:
            err.print(f"Written: {write}. Best verdict attainable: {best}", markup=False)
            err.print(
                f"Check it with `titer check {write}`, run it with `titer run {write}`.",
                markup=False,
            )
        return
    if not (quiet or as_json):
        err.print(f"Best verdict attainable: {best}", markup=False)
    try:
        perform(
            study,
            run or Path("runs/evaluate"),
            reuse=reuse,
            workers=workers,
            threads=threads,
            transcripts=False,
            quiet=quiet,
            as_json=as_json,
        )
    except OverlapError as error:  # in the words of this command, which knows files and no pools
        options = "attack: --attack-data, judge: --eval-prompts, benign: --benign-data"
        raise OverlapError(
            f"{error.problem} ({options})",
            field=error.field,
            value=error.value,
            expected=error.expected,
            remedy="remove the shared prompts from one of the two files",
        ) from error
