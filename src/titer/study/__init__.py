"""The specification of a study: frozen settings, YAML loading, digests. No torch here."""

from titer.study.load import builtin_studies, load_study
from titer.study.reference import ModelRef
from titer.study.spec import Study

__all__ = ["ModelRef", "Study", "builtin_studies", "load_study"]
