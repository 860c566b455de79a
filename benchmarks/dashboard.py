"""Draws the dashboard without a Grafana: its queries, asked of a Prometheus, in one picture.

    python -m benchmarks.dashboard http://localhost:9090 dashboard.png --minutes 10

Heat maps become their median and 95th percentile; tables are left out. Panels without data are empty.
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

DASHBOARD = Path(__file__).parents[1] / "deploy/grafana/dashboards/dragoman.json"

_COLUMNS = 6
_MAX_LABELS = 8  # in a legend; a panel with more has none
_SCALES = {"bytes": (1 / (1 << 20), "MiB"), "Bps": (1 / (1 << 20), "MiB/s"), "percentunit": (100, "%")}
_UNITS = {"s": "s", "reqps": "calls/s", "celsius": "°C", "watt": "W"}

_Series = list[tuple[str, list[float], list[float]]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draws the dashboard without a Grafana.")
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--minutes", type=float, default=10, help="until now; default 10")
    parser.add_argument("--rate-interval", default="60s", help="four times the scrape interval; default 60s")
    options = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [
        (panel, series)
        for panel in dashboard["panels"]
        if panel["type"] != "table"
        for series in [_series(options.prometheus, panel, options.minutes * 60, options.rate_interval)]
    ]
    draw(panels, options.picture)


def draw(panels: list[tuple[dict[str, Any], _Series]], path: Path) -> None:
    """Writes a PNG of panels in the order of the dashboard, each of its rows on rows of their own."""
    matplotlib.use("Agg")
    lines: list[tuple[str, list[tuple[dict[str, Any], _Series]]]] = []
    for panel, series in panels:
        if panel["type"] == "row":
            lines.append((panel["title"], []))
        else:
            if len(lines[-1][1]) == _COLUMNS:
                lines.append(("", []))
            lines[-1][1].append((panel, series))
    figure, grid = plt.subplots(len(lines), _COLUMNS, figsize=(4 * _COLUMNS, 2.4 * len(lines)), squeeze=False)
    for (title, its_panels), row in zip(lines, grid, strict=True):
        for axes in row[len(its_panels) :]:
            axes.set_axis_off()
        for (panel, series), axes in zip(its_panels, row, strict=False):
            _draw_panel(panel, series, axes)
        row[0].annotate(title, (-0.3, 0.5), xycoords="axes fraction", rotation=90, va="center", weight="bold", size=13)
    figure.tight_layout()
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def _draw_panel(panel: dict[str, Any], series: _Series, axes: Any) -> None:
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    scale, suffix = _SCALES.get(unit, (1, _UNITS.get(unit, "")))
    axes.set_title(f"{panel['title']}{f' ({suffix})' if suffix else ''}", fontsize=9)
    for label, xs, ys in series:
        axes.plot(xs, [y * scale for y in ys], linewidth=1, label=label)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.3)
    axes.set_ylim(bottom=0)
    if series and any(label for label, _, _ in series) and len(series) <= _MAX_LABELS:
        axes.legend(fontsize=5)
    elif not series:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="grey")


def _series(url: str, panel: dict[str, Any], seconds: float, rate_interval: str) -> _Series:
    """The lines of a panel; x is in minutes until now."""
    end = time.time()
    found: _Series = []
    for target in panel.get("targets", ()):
        expression, legend = target["expr"], target["legendFormat"]
        queries = [(expression, legend)]
        if panel["type"] == "heatmap":
            queries = [(f"histogram_quantile({share}, {expression})", f"p{share * 100:g}") for share in (0.5, 0.95)]
        for query, name in queries:
            query = query.replace("$__rate_interval", rate_interval).replace("$model", ".*")
            parameters = {"query": query, "start": end - seconds, "end": end, "step": max(seconds / 200, 1)}
            with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}") as answer:
                result = json.load(answer)["data"]["result"]
            for line in result:
                points = [(float(x), float(y)) for x, y in line["values"]]
                points = [(x, y) for x, y in points if math.isfinite(y)]
                if points:
                    label = name
                    for key, value in line["metric"].items():
                        label = label.replace("{{" + key + "}}", value.rpartition("/")[2])
                    label = re.sub(r"{{\w+}}", "", label)
                    found.append((label, [(x - end) / 60 for x, _ in points], [y for _, y in points]))
    return found


if __name__ == "__main__":
    main()
