"""titer: up to which training budget a model's safety withstands harmful fine-tuning."""

from titer.api import judge, run, write_report
from titer.study import Study, load_study
from titer.study.plugins import register
from titer.version import __version__

__all__ = ["Study", "__version__", "judge", "load_study", "register", "run", "write_report"]
