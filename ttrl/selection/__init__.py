"""Choosing one of many answers to a question, without a label, and what that is worth."""
