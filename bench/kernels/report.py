"""The results as Markdown.

python bench/kernels/report.py FILE...     of the bench itself, or of a part of gpu_check.sh
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ttrl_kernels import chosen_backend

PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy", "trl", "verl")


def kernel_packages() -> dict[str, str | int]:
    """Versions of the contenders, threads, and the row backend that ours takes."""
    out: dict[str, str | int] = {"threads": torch.get_num_threads()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out["rows"] = chosen_backend(device)
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def markdown(records: list[dict[str, Any]]) -> str:
    """A table per case; the cases that show growth share one."""
    parts = []
    for record in records:
        if record["part"] != "growth":
            parts += [f"\n**{record['case']}**\n", _table(record["rows"])]
    growth = [r for r in records if r["part"] == "growth"]
    if growth:
        parts += ["\n**Growth: extra MB and ms, forward+backward**\n", _growth(growth)]
    return "\n".join(parts) + "\n"


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| | ms (range) | ratio to floor | in CPU time | extra MB | error |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1].get("ms", float("inf"))):
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | | | |")
            continue
        extra = f"{row['extra_mb']:.0f}" if "extra_mb" in row else ""
        error = f"{row['error']:.1e}" if "error" in row else ""
        ms = f"{row['ms']:.1f} ({1e3 * min(row['seconds']):.1f}-{1e3 * max(row['seconds']):.1f})"
        ratios = f"{row['ratio']:.2f} | {row['cpu_ratio']:.2f}"
        lines.append(f"| {name} | {ms} | {ratios} | {extra} | {error} |")
    return "\n".join(lines)


def _growth(records: list[dict[str, Any]]) -> str:
    names = [name for name in records[0]["rows"] if "matmuls" not in name]
    lines = ["| case | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for record in records:
        cells = [_cell(record["rows"][name]) for name in names]
        lines.append(f"| {record['case']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    return row["failed"] if "failed" in row else f"{row['extra_mb']:.0f} MB, {row['ms']:.0f} ms"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        print(markdown((found.get("result") or found)["runs"]))
