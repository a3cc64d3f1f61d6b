r"""A weak verifier for the embedded additions: casting out nines.

    --set reward.estimator=verified
    --set reward.options.verifier=bench/verifiers/casting_out_nines.py:check

A number and the sum of its digits leave the same remainder modulo 9, so a sum can be checked
without adding. The check is honest, since it needs no reference answer, and weak: every right
answer passes, and so does a wrong one that is off by a multiple of 9, as when two digits are
swapped. A slip of one in some column changes the remainder, and is caught.
"""

import re

QUESTION = re.compile(r"What is ([0-9]{1,40}) \+ ([0-9]{1,40})\?")
BOX = re.compile(r"\\boxed\{([0-9]{1,41})\}")


def check(prompt: str, text: str) -> bool:
    """Whether the last boxed number agrees with the question's two numbers modulo 9."""
    asked, answers = QUESTION.findall(prompt), BOX.findall(text)
    if not asked or not answers:
        return False
    a, b = asked[-1]  # after any worked example in the prompt
    return digit_sum(answers[-1]) % 9 == (digit_sum(a) + digit_sum(b)) % 9


def digit_sum(number: str) -> int:
    """The sum of a decimal number's digits."""
    return sum(int(digit) for digit in number)
