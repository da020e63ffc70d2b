"""`titer power STUDY`: what a design can be expected to show, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from titer.cli.console import out, print_json
from titer.errors import StudyError
from titer.study.counting import counted

if TYPE_CHECKING:
    from titer.verdicts.design.power import Power


def register(app: typer.Typer) -> None:
    app.command("power")(power_command)


def power_command(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in study.")],
    breach: Annotated[
        list[float] | None,
        typer.Option(
            help="Suppose a seed breaks the candidate by T with this probability; repeatable (0, "
            "0.1, δ, 0.9)."
        ),
    ] = None,
    before: Annotated[
        float, typer.Option(help="Suppose f reads so while the candidate is not broken.")
    ] = 0.1,
    after: Annotated[float, typer.Option(help="Suppose f reads so once it is.")] = 0.9,
    at: Annotated[
        int | None,
        typer.Option(min=0, help="Step at which a run breaks (default: T, the hardest to see)."),
    ] = None,
    attacks: Annotated[
        int, typer.Option(min=0, help="How many attacks of the battery can break it.")
    ] = 1,
    control: Annotated[
        float,
        typer.Option(
            help="Suppose a seed of an attack breaks the undefended control with this probability."
        ),
    ] = 1.0,
    target: Annotated[
        float, typer.Option(help="Probability of the wanted verdict to plan for.")
    ] = 0.8,
    changed: Annotated[
        float, typer.Option(help="Share of benchmark answers an equally good candidate changes.")
    ] = 0.05,
    sd: Annotated[
        float, typer.Option(min=0, help="Standard deviation over items of a difference of means.")
    ] = 0.1,
    seed_sd: Annotated[
        float,
        typer.Option(min=0, help="Standard deviation over seeds of a task's final difference."),
    ] = 0.03,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many seeds, prompts and items a study needs, and how likely each verdict is under
    stated truths.
    """
    from titer.study import load_study
    from titer.verdicts.design.power import power, truth

    spec = load_study(study)
    chosen = breach if breach is not None else sorted({0.0, 0.1, spec.resistance.delta, 0.9})
    longest = max(spec.resistance.steps_of(a) for a in spec.resistance.expanded())
    step = longest if at is None else at
    if step > longest:
        raise StudyError(
            "nothing is read after the budget",
            field="--at",
            value=at,
            expected=f"at most T = {longest}",
        )
    truths = tuple(
        truth(breach=b, before=before, after=after, at=step, attacks=attacks, control=control)
        for b in chosen
    )
    made = power(spec, truths, target=target, changed=changed, sd=sd, seed_sd=seed_sd)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        _print(made)


def _print(made: Power) -> None:
    out.print(f"{made.study}: {made.attainable}\n", markup=False)
    first = made.chances[0].truth
    table = Table(
        title=f"If f is {first.before:g} while unbroken and {first.after:g} from step {first.at} "
        f"on in a run that breaks, under {counted(first.attacks, 'attack')} of the battery",
        title_justify="left",
    )
    for name in ("a seed breaks it", "holds", "fails", "inconclusive", "invalid"):
        table.add_column(name, justify="right")
    for c in made.chances:
        table.add_row(
            *(f"{v:.1%}" for v in (c.truth.breach, c.holds, c.fails, c.inconclusive, c.invalid))
        )
    out.print(table)
    out.print(
        f"(resistance only; a seed breaks the control with probability {first.control:g}; readings "
        "err independently)\n",
        markup=False,
    )
    for n in made.needs:
        word = "no number suffices" if n.need is None else f"{n.need} needed"
        enough = "" if n.need is None else " ✓" if n.have >= n.need else " ✕ too few"
        out.print(f"{n.what}: {word} for {n.purpose}; the study has {n.have}{enough}", markup=False)
    for name, b in made.stability.items():
        needed = (
            "no number of items suffices"
            if b["needed"] is None
            else f"{b['needed']} needed for {made.target:g}"
        )
        out.print(
            f"stability, {name}: items {b['items']}; they show an equally good candidate to be "
            f"within {b['margin']:g} with probability {_likely(b['holds'])}; {needed}",
            markup=False,
        )
    if made.trainability:
        t = made.trainability
        out.print(
            f"trainability: seeds {t['seeds']}; they show an equally good candidate to be within "
            f"{t['margin']:g} with probability {_likely(t['holds'])} (final score only); "
            f"{t['needed'] or 'more than 500'} needed for {made.target:g}",
            markup=False,
        )


def _likely(p: float | int | None) -> str:
    """A probability is never rounded to 0 or 1."""
    return (
        "> 0.99"
        if p is not None and p > 0.99
        else "< 0.01"
        if p is not None and p < 0.01
        else f"{p:.2f}"
    )
