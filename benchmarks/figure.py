"""The trade between work and quality as a picture: one SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 48
INK, LINE, CURVE = "#57606a", "#d0d7de", "#1f6feb"


def keep_curve(means: Mapping[str, Mapping[str, float]]) -> str:
    """PSNR over the share of the dense network's MACs that is done: a curve through the methods ``keep=SHARE``, each
    point marked with its share, and points for ``dense`` and ``pruned`` where they were measured.

    means: for each method its ``psnr`` in dB and ``skipped``, a share. Raises ValueError without two points.
    """
    points = {
        name: (1 - values["skipped"], values["psnr"])
        for name, values in means.items()
        if name in ("dense", "pruned") or name.startswith("keep=")
    }
    if len(points) < 2:
        raise ValueError("a curve needs two of the methods keep=SHARE, dense and pruned")
    lowest, highest = min(y for _, y in points.values()), max(y for _, y in points.values())
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if highest - lowest < 6 * step or step == 5.0)
    first, last = int(lowest // step), int(-(-highest // step))
    last = max(last, first + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y / step - first) / (last - first) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' font-family='sans-serif' "
        f"font-size='12' fill='{INK}'><rect width='100%' height='100%' fill='white'/>"
    ]
    for number in range(first, last + 1):
        _, y = place(0, number * step)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{LINE}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{number * step:.2f}</text>")
    for tenths in range(0, 11, 2):
        x, _ = place(tenths / 10, 0)
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 18}' text-anchor='middle'>{10 * tenths} %</text>")
    parts.append(f"<text x='{LEFT}' y='{HEIGHT - 8}'>of the dense network's MACs; PSNR in dB</text>")
    kept = sorted(point for name, point in points.items() if name.startswith("keep="))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in kept))
    parts.append(f"<polyline points='{line}' fill='none' stroke='{CURVE}' stroke-width='1.5'/>")
    for name, point in points.items():
        x, y = place(*point)
        fill = CURVE if name.startswith("keep=") else INK
        below = 16 if name.startswith("keep=") else -8
        anchor = "end" if x > WIDTH / 2 else "middle"
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{fill}'/>")
        word = name.removeprefix("keep=")
        parts.append(f"<text x='{x:.1f}' y='{y + below:.1f}' text-anchor='{anchor}'>{word}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"
