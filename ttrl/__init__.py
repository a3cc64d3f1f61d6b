"""ttrl: test-time reinforcement learning on unlabeled questions (arXiv 2504.16084)."""

__version__ = "0.1.0"
