"""From a completion's text to an answer, and when two answers are the same."""

from ttrl.answers.canonical import canonical, equivalent
from ttrl.answers.extract import extract_answer

__all__ = ["canonical", "equivalent", "extract_answer"]
