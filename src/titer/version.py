"""The version of titer: packaging, records and verdicts read it here."""

__version__ = "0.1.0"
