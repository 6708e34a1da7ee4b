"""The log of a run as a page with curves: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
from pathlib import Path

WIDTH, HEIGHT = 720, 200
MARGIN = 56
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")

Series = dict[str, list[tuple[float, float]]]
"""Points (minutes, value) by name."""


def write(log: Path, page: Path) -> None:
    """Draw a log of JSON lines; does nothing where there is no log yet."""
    if not log.exists():
        return
    records = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    quality: Series = {}
    rest: dict[str, Series] = {"validation": {}, "masks": {}, "loss": {}, "speed": {}}
    for record in records:
        if "minutes" not in record:
            continue  # a setback
        at = float(record["minutes"])
        for name, value in record.get("validation", {}).items():
            where = rest["masks"] if name == "skipped" else rest["validation"] if "psnr" in name else None
            if where is not None:
                where.setdefault(name, []).append((at, value))
        if "psnr" in record:
            quality.setdefault("psnr", []).append((at, record["psnr"]))
            for name in ("loss", "reconstruction", "pruned", "flow", "label", "sparsity", "contrast"):
                if name in record:
                    rest["loss"].setdefault(name, []).append((at, record[name]))
            for name in record:
                if name.startswith(("kept_", "density_")):
                    rest["masks"].setdefault(name, []).append((at, record[name]))
            rest["speed"].setdefault("samples_per_second", []).append((at, record["samples_per_second"]))
    charts = [
        ("PSNR of training crops, unpruned (dB)", quality),
        ("PSNR of validation clips (dB)", rest["validation"]),
        ("Masks: share skipped of all work, share of blocks kept", rest["masks"]),
        ("Loss and its parts, weighted", rest["loss"]),
        ("Samples per second", rest["speed"]),
    ]
    body = "\n".join(_chart(title, series) for title, series in charts if series)
    title = html.escape(page.resolve().parent.name)
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        f"<body style='font: 14px sans-serif; margin: 24px'><h1>{title}</h1>\n{body}</body>\n"
    )


def _chart(title: str, series: Series) -> str:
    """One chart as SVG: minutes to the right, values up, a legend below."""
    points = [point for line in series.values() for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    right, high = max(right, left + 1e-6), max(high, low + 1e-6)

    def place(x: float, y: float) -> str:
        across = MARGIN + (x - left) / (right - left) * (WIDTH - MARGIN - 10)
        return f"{across:.1f},{HEIGHT - 24 - (y - low) / (high - low) * (HEIGHT - 34):.1f}"

    parts = [
        f"<text x='{MARGIN - 6}' y='{y}' text-anchor='end'>{value:.4g}</text>"
        for value, y in ((low, HEIGHT - 20), (high, 16))
    ]
    parts += [
        f"<text x='{x}' y='{HEIGHT - 4}' text-anchor='{anchor}'>{value:.4g} min</text>"
        for value, x, anchor in ((left, MARGIN, "start"), (right, WIDTH - 10, "end"))
    ]
    legend = []
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        spots = [place(x, y) for x, y in line]
        parts.append(f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{' '.join(spots)}'/>")
        for across, up in (spot.split(",") for spot in spots):
            parts.append(f"<circle r='2' fill='{colour}' cx='{across}' cy='{up}'/>")
        legend.append(f"<span style='color: {colour}'>{html.escape(name)} {line[-1][1]:.4g}</span>")
    frame = f"<svg width='{WIDTH}' height='{HEIGHT}' style='background: #f6f8fa'>{''.join(parts)}</svg>"
    return f"<h2>{html.escape(title)}</h2>{frame}<p>{' &middot; '.join(legend)}</p>"
