"""Models that say how good an answer is, step by step or as a whole."""
