"""Figures drawn by Vega-Lite, as SVG and PNG, without a browser or a network (vl-convert)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

from ttrl.report.page.figures import Figure, Series

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5489a", "#8a6d00", "#4b4fc4", "#6b6b6b")
"""Told apart by most eyes (after Okabe and Ito), with a contrast of 3 to white or more; page.css
has the same for a dark page."""

DASHES = ([1, 0], [6, 3], [2, 3], [8, 3, 2, 3])
FEW, SMOOTHED = 30, 100
"""Points of a curve: up to so many are marked, and more than that are smoothed, too."""
Points = tuple[tuple[float, float], ...]
WIDTH, HEIGHT = 380, 240
SCALE = 2.0
"""Pixels of a PNG for each of the SVG."""

CONFIG: dict[str, Any] = {
    "aria": False,  # the page says it better
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "#4a4a4a",
        "titleColor": "#4a4a4a",
        "titleFontWeight": "normal",
        "gridColor": "#e4e4e4",
        "domainColor": "#9a9a9a",
        "tickColor": "#9a9a9a",
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "columns": 2,
        "columnPadding": 16,
        "layout": {"top": {"margin": 6, "direction": "vertical"}},
        "title": None,
        "labelColor": "#1f1f1f",
        "labelFontSize": 12,
        "labelLimit": 180,
        "symbolType": "stroke",
        "symbolStrokeWidth": 3,
        "symbolSize": 220,
        "symbolOpacity": 1,
    },
    "line": {"strokeWidth": 1.8, "strokeJoin": "round"},
}


def svg(figure: Figure) -> str:
    """Draw a figure as SVG, which nothing but the values and names in it decides."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(spec(figure))
    refuse_active(drawn)
    return drawn


def write_plots(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure as KEY.svg and KEY.png, on white, into a folder."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        titled = {**spec(figure), "title": {"text": figure.title, "anchor": "start"}}
        titled["config"] = {**CONFIG, "background": "#ffffff"}
        plot = folder / figure.key
        plot.with_suffix(".svg").write_text(vl_convert.vegalite_to_svg(titled), encoding="utf-8")
        plot.with_suffix(".png").write_bytes(vl_convert.vegalite_to_png(titled, scale=SCALE))
        written += [plot.with_suffix(".svg"), plot.with_suffix(".png")]
    return written


def spec(figure: Figure) -> dict[str, Any]:
    """Return a figure in Vega-Lite's language."""
    runs = list(dict.fromkeys(series.run for series in figure.series))
    names = list(dict.fromkeys(series.name for series in figure.series))
    groups = group_of(runs)
    steps = [step for series in figure.series for step, _ in series.points]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    x_scale = {"domain": [first, last], "nice": False}
    y_title = None if figure.unit == "%" else figure.unit or None
    x = {"field": "x", "type": "quantitative", "title": "step", "scale": x_scale}
    x["axis"] = {"values": _ticks(first, last), "format": "d", "grid": False}
    y = {"field": "y", "type": "quantitative", "title": y_title, **_value_axis(figure)}
    lines = {"x": x, "y": y, **_channels(groups, names)}
    layers = [*_lines(figure, lines, groups), *_bands(figure, lines, groups), *_bounds(figure)]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": CONFIG,
        "layer": layers,
    }


def refuse_active(drawn: str) -> None:
    """Raise a ValueError unless an SVG is well-formed and of shapes and text alone.

    Names of runs are in it, and what an editor made of a name is not known here.
    """
    allowed = {"svg", "g", "path", "line", "text", "rect"}
    for element in ElementTree.fromstring(drawn).iter():
        tag = element.tag.rpartition("}")[2]
        active = [name for name in element.attrib if name.startswith("on") or "href" in name]
        if tag not in allowed or active:
            raise ValueError(f"an SVG with {tag} {active}")


def _channels(group_of_run: Mapping[str, str], names: list[str]) -> dict[str, Any]:
    """Tell curves apart: by colour, and of several runs their metrics by dashes."""
    by_name = {"field": "name", "type": "nominal"}
    scale = {"domain": names, "range": [COLORS[i % len(COLORS)] for i in range(len(names))]}
    dashes = {"domain": names, "range": [DASHES[i % len(DASHES)] for i in range(len(names))]}
    if len(group_of_run) == 1:
        return {
            "color": by_name | {"scale": scale},
            "strokeDash": by_name | {"scale": dashes},
        }
    groups = list(dict.fromkeys(group_of_run.values()))
    of_runs = {"domain": groups, "range": [COLORS[i % len(COLORS)] for i in range(len(groups))]}
    channels = {
        "color": {"field": "group", "type": "nominal", "scale": of_runs},
        "detail": [{"field": "name"}, {"field": "run"}],
    }
    return channels | ({"strokeDash": by_name | {"scale": dashes}} if len(names) > 1 else {})


def group_of(runs: Sequence[str]) -> dict[str, str]:
    """Return what each run is coloured by: itself, or of more runs than colours its folder.

    So the seeds of ``ttrl reproduce`` are alike, and training with the labels is not.
    """
    folders = {run: run.rpartition("/")[0] for run in runs}
    many = len(runs) > len(COLORS) and all(folders.values())
    return folders if many else {run: run for run in runs}


def _lines(
    figure: Figure, lines: dict[str, Any], groups: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Draw the curves; long ones pale, and over them their running means."""
    longest = max(len(series.points) for series in figure.series)
    values = [row for series in figure.series for row in _rows(series, series.points, groups)]
    mark: dict[str, Any] = {"type": "line"}
    if longest <= FEW:
        mark["point"] = {"size": 24, "filled": True}
    if longest <= SMOOTHED:
        return [{"data": {"values": values}, "mark": mark, "encoding": lines}]
    pale = {"type": "line", "opacity": 0.3, "strokeWidth": 1, "strokeDash": [1, 0]}
    means = [
        row for series in figure.series for row in _rows(series, smoothed(series.points), groups)
    ]
    without_dashes = {name: channel for name, channel in lines.items() if name != "strokeDash"}
    detail = {"detail": [{"field": "name"}, {"field": "run"}]}
    return [
        {"data": {"values": values}, "mark": pale, "encoding": without_dashes | detail},
        {"data": {"values": means}, "mark": mark, "encoding": lines},
    ]


def smoothed(points: Points) -> Points:
    """Return the running mean over a fiftieth of the points, around each."""
    half = len(points) // 100
    values = [y for _, y in points]
    return tuple(
        (x, fmean(values[max(0, i - half) : i + half + 1])) for i, (x, _) in enumerate(points)
    )


def _ticks(first: float, last: float) -> list[int]:
    """Return about six whole steps to write at the axis."""
    apart = max(1, round((last - first) / 6))
    scale = 10 ** (len(str(apart)) - 1)
    apart = next(n for n in (scale, 2 * scale, 5 * scale, 10 * scale) if n >= apart)
    start = math.ceil(first / apart) * apart
    return list(range(start, math.floor(last) + 1, apart))


def _rows(series: Series, points: Points, groups: Mapping[str, str]) -> list[dict[str, Any]]:
    whose = {"name": series.name, "run": series.run, "group": groups[series.run]}
    return [{"x": x, "y": y, **whose} for x, y in points]


def _bands(
    figure: Figure, lines: dict[str, Any], groups: Mapping[str, str]
) -> list[dict[str, Any]]:
    values = [
        {"x": x, "y": low, "y2": high, "name": series.name, "run": series.run}
        | {"group": groups[series.run]}
        for series in figure.series
        for x, low, high in series.band
    ]
    if not values:
        return []
    encoding = {"x": lines["x"], "y": lines["y"], "color": lines["color"], "y2": {"field": "y2"}}
    detail = {"detail": [{"field": "name"}, {"field": "run"}]}
    opacity = min(0.12, 0.24 / len(groups))  # of many, which lie on each other
    mark = {"type": "area", "opacity": opacity, "line": False}
    return [{"data": {"values": values}, "mark": mark, "encoding": encoding | detail}]


def _bounds(figure: Figure) -> list[dict[str, Any]]:
    if not figure.bounds:
        return []
    data = {"values": [{"y": value, "name": name} for name, value in figure.bounds.items()]}
    y = {"field": "y", "type": "quantitative"}
    rule = {"type": "rule", "strokeDash": [5, 4], "color": "#6b6b6b", "strokeWidth": 1.2}
    # Below its line and at the start, where curves that rise to it have not come yet.
    place = {"align": "left", "dx": 6, "dy": 12}
    text = {"type": "text", **place, "fontSize": 12, "color": "#4a4a4a"}
    left = {"value": 0}
    return [
        {"data": data, "mark": rule, "encoding": {"y": y}},
        {"data": data, "mark": text, "encoding": {"y": y, "x": left, "text": {"field": "name"}}},
    ]


def _value_axis(figure: Figure) -> dict[str, Any]:
    """Return the scale and the axis of the values."""
    values = [y for series in figure.series for _, y in series.points]
    low, high = min([*values, *figure.bounds.values()]), max([*values, *figure.bounds.values()])
    if figure.log:
        return {"scale": {"type": "log"}, "axis": {"format": ".0e", "tickCount": 3}}
    shown = "%" if figure.unit == "%" else ",f"  # as many decimals as the ticks need
    scale: dict[str, Any] = {"zero": False, "nice": True}
    if high == low:  # a flat curve still needs some height
        scale = {"domain": [0, 2 * high]} if high > 0 else {"domain": [min(low, 0), 1]}
    return {"scale": scale, "axis": {"format": shown, "tickCount": 5}}
