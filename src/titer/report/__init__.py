"""What people see of a verdict: one self-contained HTML file, Markdown, a model-card section, and a
schema for programs.
"""

from titer.report.card import model_card_section
from titer.report.html import render_html
from titer.report.markdown import render_markdown
from titer.report.schema import verdict_schema
from titer.report.write import ReportPaths, write_report

__all__ = [
    "ReportPaths",
    "model_card_section",
    "render_html",
    "render_markdown",
    "verdict_schema",
    "write_report",
]
