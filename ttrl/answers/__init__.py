"""From a completion's text to an answer, and when two answers are the same."""

from ttrl.answers.canonical import canonical
from ttrl.answers.extract import Extractor, extract_answer, make_extractor
from ttrl.answers.grader import Grader, default_grader, equivalent, tie_order

__all__ = [
    "Extractor",
    "Grader",
    "canonical",
    "default_grader",
    "equivalent",
    "extract_answer",
    "make_extractor",
    "tie_order",
]
