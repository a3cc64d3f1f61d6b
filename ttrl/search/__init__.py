"""Search for an answer step by step, where a reward model says which steps to go on with."""

from ttrl.search.steps import SEARCHES, Found, SearchParams, Solution, search

__all__ = ["SEARCHES", "Found", "SearchParams", "Solution", "search"]
