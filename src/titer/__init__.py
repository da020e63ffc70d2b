"""titer: up to which training budget does a language model's safety withstand harmful fine-tuning?"""

from titer.api import judge, run, write_report
from titer.study import Study, load_study
from titer.study.plugins import register

__version__ = "0.1.0"
__all__ = ["Study", "__version__", "judge", "load_study", "register", "run", "write_report"]
