"""The folder of a run: settings, metrics, answers, checkpoints and the trained model."""
