"""The plot of ``ttrl scale``: accuracy against tokens, a curve for each method, as SVG or HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttrl.report.page.drawing import COLORS, CONFIG, DASHES, refuse_active
from ttrl.report.tables import TextTable

WIDTH, HEIGHT = 640, 380
STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1.5rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; background: #fff; }
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """A method's curve.

    Example: ``Curve("majority", ((40.0, 0.5, 0.45, 0.55), (80.0, 0.6, 0.55, 0.65)))``.
    """

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    """(tokens, accuracy, and the bounds of its interval)."""


def scaling_svg(curves: Sequence[Curve], title: str, x_title: str) -> str:
    """Draw the curves as SVG, of shapes and text alone."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_spec(curves, title, x_title))
    refuse_active(drawn)
    return drawn


def scaling_page(svg: str, tables: Sequence[TextTable], title: str) -> str:
    """Return a page with the plot and tables, which loads nothing and runs nothing."""
    shown = "\n".join(map(_table, tables))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{svg}\n{shown}\n</body></html>\n"
    )


def _spec(curves: Sequence[Curve], title: str, x_title: str) -> dict[str, Any]:
    names = [curve.name for curve in curves]
    rows = [
        {"name": curve.name, "x": x, "y": y, "low": low, "high": high}
        for curve in curves
        for x, y, low, high in curve.points
    ]
    x = {"field": "x", "type": "quantitative", "title": x_title, "scale": {"type": "log"}}
    x["axis"] = {"format": "~s", "grid": False, "tickCount": 8}
    y = {"type": "quantitative", "title": "accuracy", "scale": {"zero": False, "nice": True}}
    y["axis"] = {"format": "%"}
    colors = {"domain": names, "range": [COLORS[i % len(COLORS)] for i in range(len(names))]}
    dashes = {"domain": names, "range": [DASHES[i % len(DASHES)] for i in range(len(names))]}
    color = {"field": "name", "type": "nominal", "scale": colors}
    line = {
        "x": x,
        "y": {"field": "y", **y},
        "color": color,
        "strokeDash": {"field": "name", "type": "nominal", "scale": dashes},
    }
    bars = {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": color}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "title": {"text": title, "anchor": "start"},
        "autosize": {"type": "fit", "contains": "padding"},
        "config": {**CONFIG, "background": "#ffffff"},
        "data": {"values": rows},
        "layer": [
            {"mark": {"type": "rule", "opacity": 0.35}, "encoding": bars},
            {
                "mark": {"type": "line", "point": {"size": 28, "filled": True}},
                "encoding": line,
            },
        ],
    }


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n"
        for row in table.rows
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f"<table>{caption}<tr>{head}</tr>\n{rows}</table>\n{notes}"
