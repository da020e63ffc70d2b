"""Write docs/reference/command_line.md again, after a command or an option has changed."""

from __future__ import annotations

import os
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "command_line.md"
HEAD = """\
# Command line

Every command with its options, as `titer COMMAND --help` prints it. This page is generated:
`python scripts/write_command_line.py` writes it again.

Exit status: 0 if all went well; 1 if work failed; 2 if the study or the command line is wrong; 3 if
a required guideline is not met (`titer audit`); 130 if interrupted. `--json` prints JSON and
nothing else on standard output.
"""


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"
    import typer.main
    from typer.testing import CliRunner

    from titer.cli.main import app

    def shown(*arguments: str) -> str:
        told = CliRunner().invoke(app, [*arguments, "--help"], prog_name="titer").output
        return "\n".join(line.rstrip() for line in told.strip().splitlines())

    parts = [f"{HEAD}\n```text\n{shown()}\n```\n"]
    for name in typer.main.get_command(app).commands:
        parts.append(f"## `titer {name}`\n\n```text\n{shown(name)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET)
