"""What accuracy each way to spend tokens buys on a data set: votes, search, or training."""

from ttrl.scaling.measuring import Measuring
from ttrl.scaling.methods import METHODS
from ttrl.scaling.points import Factors, Point, best_within

__all__ = ["METHODS", "Factors", "Measuring", "Point", "best_within"]
