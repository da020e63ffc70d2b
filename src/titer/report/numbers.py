"""How numbers are written: enough digits to decide by, none that pretend to more; an absent number
is a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from titer.study.counting import counted as counted
from titer.study.reference import ModelRef
from titer.verdicts.output.verdict import Interval, StudyVerdict, Trajectory

ABSENT = "—"
NAMES = ("name", "attack", "defense", "measure")
"""Fields that say what a group of settings belongs to."""
MODEL_FIELDS = set(ModelRef.model_fields)
MINUS = "\u2212"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# At least two components, so that `pool/part` and `1/2` stay; not inside a URL or a longer word.
_LOCAL_PATH = re.compile(
    r"(?<![\w./~-])(?:~|\b[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:|<>]+[/\\])+([^\s/\\'\",;:|<>]*)"
)


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without exponent where that is readable: 0.125, 12.5, 1250;
    beyond, 1.25 × 10⁶.
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e6:
        return _minus(
            f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else f"{value:.0f}"
        )
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 6:
        return _minus(f"{value:.{max(0, digits - 1 - size)}f}")
    return scientific(value, digits)


def exact(value: float | None) -> str:
    """A setting somebody chose (φ, α, a margin): written as chosen, not rounded to a precision."""
    return ABSENT if value is None else _minus(f"{value:.10g}")


def fixed(value: float | None, places: int = 2) -> str:
    """A share or a score with a fixed number of places, so that columns line up."""
    return ABSENT if value is None or not math.isfinite(value) else _minus(f"{value:.{places}f}")


def signed(value: float | None, places: int = 3) -> str:
    """As `fixed`, with a sign always."""
    return ABSENT if value is None or not math.isfinite(value) else _minus(f"{value:+.{places}f}")


def percent(value: float | None, places: int = 0) -> str:
    """0.95 → `95 %`. A share that is not 0 or 1 is never rounded to 0 % or 100 %."""
    if value is None or not math.isfinite(value):
        return ABSENT
    while places < 6 and 0 < abs(value) < 1 and round(100 * value, places) in (0, 100):
        places += 1
    return _minus(f"{100 * value:.{places}f}") + "\u00a0%"


def scientific(value: float, digits: int = 3) -> str:
    """1.25 × 10⁶."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_minus(mantissa)}\u00a0×\u00a010{str(int(exponent)).translate(SUPERSCRIPT)}"


def engineering(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Exponents in threes: 12.5 × 10⁹ FLOP; numbers under a thousand plain."""
    if value is None or not math.isfinite(value):
        return ABSENT
    tail = f"\u00a0{unit}" if unit else ""
    if value == 0:
        return "0" + tail
    value = float(f"{value:.{digits - 1}e}")  # rounded first: 999 999 is 1.00 × 10⁶, not 1000 × 10³
    power = 3 * math.floor(math.log10(abs(value)) / 3)
    if 0 <= power < 3:
        return number(value, digits) + tail
    mantissa = value / 10.0**power
    places = max(0, digits - 1 - math.floor(math.log10(abs(mantissa))))
    exponent = str(power).translate(SUPERSCRIPT)
    return f"{_minus(f'{mantissa:.{places}f}')}\u00a0×\u00a010{exponent}{tail}"


def flops(value: float | None) -> str:
    """Training FLOPs in engineering notation; 0 is 'nothing spent', an unknown cost a dash."""
    return engineering(value, "FLOP")


def seconds(value: float | None) -> str:
    """Wall time: 4.2 s, 12 min 30 s, 3 h 05 min."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value < 60:
        return number(value, 2) + "\u00a0s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes:02d}\u00a0min"


def size(value: int | None) -> str:
    """Bytes in powers of 1024: 1.5 GiB."""
    if not value:
        return ABSENT
    amount, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{number(amount, 3)}\u00a0{units[0]}"


def steps_interval(low: int | None, high: int | None) -> str:
    """τ on the probe grid: `(8, 16]`; `> 64 (censored)`; `0 (broken before training)`; a dash if
    nothing is known.
    """
    if low is None and high is None:
        return ABSENT
    if high is None:
        return f"> {low} (censored)"
    if low is None:
        return "0 (broken before training)" if high == 0 else f"≤ {high}"
    return f"({low}, {high}]"


def breach_interval(run: Trajectory) -> str:
    """τ of one run, with what makes it unsure: ambiguous probes, collapse, divergence."""
    text = steps_interval(run.last_resisting, run.first_breached)
    notes = []
    if text == ABSENT:
        text = "undecided"
    if run.ambiguous:
        notes.append("ambiguous at " + ", ".join(map(str, run.ambiguous)))
    if run.collapsed_at is not None:
        notes.append(f"collapsed at {run.collapsed_at}")
    if run.outcome == "diverged":
        notes.append("diverged")
    return text + (f"; {'; '.join(notes)}" if notes else "")


def interval(value: Interval | None, places: int = 3, *, level: bool = True) -> str:
    """`[0.12, 0.40] (95 %)`, one-sided `≥ 0.12 (95 %)`; unbounded on both sides is said so."""
    if value is None:
        return ABSENT
    tail = f" ({percent(value.level)})" if level else ""
    if value.low is None and value.high is None:
        return "unbounded" + tail
    if value.high is None:
        return f"≥ {fixed(value.low, places)}{tail}"
    if value.low is None:
        return f"≤ {fixed(value.high, places)}{tail}"
    return f"[{fixed(value.low, places)}, {fixed(value.high, places)}]{tail}"


def seeds(values: Sequence[int]) -> str:
    """Seeds in declared order, runs of consecutive ones shortened: `0–4, 9`."""
    parts: list[list[int]] = []
    for v in values:
        if parts and v == parts[-1][-1] + 1:
            parts[-1].append(v)
        else:
            parts.append([v])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts) or ABSENT


def settings(values: Mapping[str, Any]) -> str:
    """`lr = 1e-4, batch size = 8`; in the order given, paths shortened. What is not set (None, an
    empty list) is left out.
    """
    said = [f"{words(k).strip()} = {_setting(v)}" for k, v in values.items() if not _unset(v)]
    return ", ".join(said) or ABSENT


def _unset(value: Any) -> bool:
    return value is None or (isinstance(value, str | Mapping | list | tuple) and not value)


def _setting(value: Any) -> str:
    """One setting; what consists of several is bracketed, so that commas stay readable."""
    if isinstance(value, float):
        return _chosen(value)
    if isinstance(value, Mapping):
        if set(value) == MODEL_FIELDS or set(value) == MODEL_FIELDS - {"task"}:
            return without_paths(str(ModelRef.model_validate(value)))
        rest = {k: v for k, v in value.items() if k not in (*NAMES, "settings")}
        rest.update(value.get("settings") or {})
        name = next((without_paths(str(value[k])) for k in NAMES if value.get(k)), "")
        inner = settings(rest)
        return name if inner == ABSENT and name else f"{name} ({inner})".strip()
    if isinstance(value, list | tuple):
        return f"({', '.join(_setting(v) for v in value)})"
    return plain(value)


def _chosen(value: float) -> str:
    """A number somebody chose: 0.5, 2, 1e-4."""
    text = f"{value:.10g}"
    if "e" not in text and (value == 0 or abs(value) >= 1e-3):
        return text
    mantissa, exponent = f"{value:.9e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def plain(value: Any) -> str:
    """Any value of a study, a plan or a record as one short line of text."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _chosen(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{words(str(k))}: {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return ", ".join(plain(v) for v in items) or "none"
    return without_paths(str(value))


def without_paths(text: str) -> str:
    """Absolute local paths cut to their last part: a report is passed on, and says nothing about
    somebody's disk.
    """
    return _LOCAL_PATH.sub(lambda m: "…/" + m.group(1) if m.group(1) else "…", text)


def scrubbed(value: Any) -> Any:
    """The same JSON value with local paths shortened in every string, keys included."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {scrubbed(k): scrubbed(v) for k, v in value.items()}
    return [scrubbed(v) for v in value] if isinstance(value, list | tuple) else value


def shared(verdict: StudyVerdict) -> StudyVerdict:
    """The verdict as it may be passed on: no local path is in it."""
    body = verdict.model_dump(mode="json")
    clean = scrubbed(body)
    return verdict if clean == body else StudyVerdict.model_validate(clean)


def words(text: str) -> str:
    """`open_weights` → `open weights`."""
    return text.replace("_", " ")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
