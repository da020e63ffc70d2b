"""Write docs/schema/verdict.schema.json again, after the verdict's classes have changed."""

from __future__ import annotations

from pathlib import Path

from titer.report.schema import schema_text

TARGET = Path(__file__).parents[1] / "docs" / "schema" / "verdict.schema.json"

if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(schema_text(), encoding="utf-8")
    print(TARGET)
