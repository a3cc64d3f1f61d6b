"""TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ttrl.report.trackers.tracker import COLUMNS, SampledAnswer, Tracked


class TensorboardTracker:
    """Event files in the run's folder: ``tensorboard --logdir runs``."""

    def __init__(self, tracked: Tracked) -> None:
        """Begin an event file."""
        from torch.utils.tensorboard import SummaryWriter

        self.id = "tensorboard"
        self.writer = SummaryWriter(str(tracked.folder / self.id))
        if tracked.id is None:
            self.writer.add_text("recipe", _verbatim(tracked.toml), 0)

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        """Keep a step's figures, and its answers as text."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        for i, answer in enumerate(answers):
            pairs = zip(COLUMNS, answer.cells(), strict=True)
            said = "\n".join(f"{name}: {value}" for name, value in pairs)
            self.writer.add_text(f"answers/{i}", _verbatim(said), step)
        self.writer.flush()

    def finish(self, *, failed: bool) -> None:
        """Close the file."""
        self.writer.close()


def _verbatim(text: str) -> str:
    """Write text in TensorBoard's Markdown, in which it is shown as it is."""
    return f"<pre>{escape(text)}</pre>"
