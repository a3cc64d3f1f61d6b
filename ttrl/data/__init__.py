"""From data sets to questions and, apart from them, the answer key."""
