"""The section [stopping]: when training should end, by its votes."""

from __future__ import annotations

from ttrl.settings.section import Count, Section, Share


class StoppingSettings(Section):
    """Ends a run by its votes, without labels."""

    by_votes: bool = False
    """End the run when its votes say so, and go back to the weights of the best pass unless the
    votes have settled. A pass is rated by the majority ratio, times the share of its labels that
    the next pass confirms; what training began with, by the first step's majority ratio. Passes of
    fewer than 8 steps are taken together until they have so many."""
    share: Share = 0.95
    """Settled: over a pass, the majority has so much of the votes, and so many labels are those of
    the visit before."""
    gain: Share = 0.01
    """A pass is better than the best one if it is rated higher by more than this."""
    patience: Count = 2
    """End after so many passes in a row that are no better; a sign of a collapse, as [guard] has
    them, ends the run at once."""
