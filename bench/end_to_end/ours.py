"""Our trainer doing the work; prints seconds per step as JSON.

python bench/end_to_end/ours.py FOLDER STEPS SEED [SETTING=VALUE ...]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from work import settings_of

import ttrl


def main() -> None:
    """Train, and leave the model in FOLDER/model."""
    folder, steps, seed = Path(sys.argv[1]), *map(int, sys.argv[2:4])
    ends: list[float] = []
    run = ttrl.train(
        settings_of(folder, steps, seed, sys.argv[4:]),
        run_dir=folder / "run",
        callbacks=[lambda step: ends.append(time.perf_counter())],
        console=Console(quiet=True),
    )
    (folder / "run" / "model").rename(folder / "model")
    phases = {
        name: [round(line[f"time/{name}_s"], 4) for line in run.metrics]
        for name in ("rollout", "update")
    }
    # The first step ends when nothing can say how long it took: it is not counted.
    print(
        json.dumps(
            {
                "step_s": [round(b - a, 4) for a, b in pairwise(ends)],
                "phases": phases,
                "tokens": [line["rollout/tokens"] for line in run.metrics],
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
