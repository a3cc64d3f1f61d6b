"""Groups of completions, made by hand."""

from ttrl.types import Completion, CompletionGroup, FinishReason, Question


def completion(text: str, tokens: int = 3, *, truncated: bool = False) -> Completion:
    finish_reason = FinishReason.LENGTH if truncated else FinishReason.STOP
    return Completion(tuple(range(tokens)), (-0.5,) * tokens, text, finish_reason)


def boxed(answer: str | None) -> str:
    return "I give up." if answer is None else f"So it is $\\boxed{{{answer}}}$."


def group(*answers: str | None, id: str = "q1") -> CompletionGroup:
    """One completion per answer; the i-th is i + 1 tokens long."""
    completions = tuple(completion(boxed(a), tokens=i + 1) for i, a in enumerate(answers))
    return CompletionGroup(Question(id, "What is 3 + 4?", (7, 8, 9)), completions, 0)
