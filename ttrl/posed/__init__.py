"""Questions that the policy poses itself: a proposer and a solver in one policy.

    prompts -> proposals -> questions -> (votes of the solver) -> shares -> rewards of the proposals

What a proposal says of its own answer is read by nobody.
"""
