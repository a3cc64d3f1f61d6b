"""From a completion's text to an answer, and when two answers are the same."""

from ttrl.answers.canonical import canonical, equivalent
from ttrl.answers.extract import Extractor, extract_answer, make_extractor
from ttrl.answers.grader import Grader

__all__ = ["Extractor", "Grader", "canonical", "equivalent", "extract_answer", "make_extractor"]
