"""Inference engines, one file per kind; those of a single process are registered here by name."""

from ttrl.rollout.engines.base import EngineMaker
from ttrl.rollout.engines.transformers_engine import TransformersEngine
from ttrl.rollout.engines.vllm_engine import VllmEngine

ENGINES: dict[str, EngineMaker] = {
    "transformers": TransformersEngine.load,
    "vllm": VllmEngine,
}
"""Engines by their name in ``rollout.engine``."""
