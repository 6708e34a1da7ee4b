"""Three scenes drawn at any instant, so that the true frame between two others is known.

    python benchmarks/scenes.py NAME OUT.mp4 [--size 1280x720] [--seconds 2]     # as a clip of 24 frames a second

``talking-head``: a speaker before a still room; most of the picture could be skipped. ``pan``: the camera turns over a
landscape whose layers move at different speeds; everything moves. ``confetti``: small pieces that fall, turn and flip
before a curtain; motion is everywhere, and much of it is too fast and too small to be found.

Lengths are in units of 1/720 of the picture's height, x from its middle, y from its top; speeds are a second's; colours
are RGB in [0, 1]. A scene of one size is the same on every run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import ceil, cos, pi, sin
from pathlib import Path

import numpy as np
from drawing import Painter, Plane, coordinates, draw, ellipse, lookup, noise, skin, window, write_clip

WAY_OUT = 4
"""Seconds until the pan turns back: its layers end somewhere."""


def talking_head(width: int, height: int) -> Painter:
    """Head and shoulders that sway by a few pixels, a mouth that speaks, eyes that blink; the room is still."""
    rng = np.random.default_rng(3)
    unit, x, y = coordinates(width, height)
    room = _room(rng, width, height)
    grain = noise(rng, height, width, 60 * unit, 5)
    strands = noise(rng, height, width, (90 * unit, 7 * unit), 3)
    knit = noise(rng, height, width, 9 * unit, 2)

    def paint(time: float) -> Plane:
        picture = room.copy()

        def put(colour: object, distance: Plane, strength: float = 1.0, soft: float = 1.0) -> None:
            """``soft``: width of the edge in pixels."""
            draw(picture, colour, distance * unit / soft, strength)

        # The body leans, and the head nods and tilts on it about the neck.
        lean = 2.5 * sin(1.9 * time)
        body_x, body_y = x - lean, y - 1.2 * sin(2.6 * time)
        angle = 0.035 * sin(2.3 * time + 0.6) + 0.012 * sin(5.9 * time)
        right, down = x - 1.6 * lean, y - 430 - 3.5 * sin(4.1 * time)
        head_x, head_y = right * cos(angle) + down * sin(angle), down * cos(angle) - right * sin(angle) + 430
        hair = (0.20 + 0.22 * lookup(strands, head_x, head_y, unit))[..., None] * np.float32([1.0, 0.68, 0.45])
        put(hair, ellipse(head_x, head_y, 0, 262, 124, 146))
        put(hair * 0.8, ellipse(head_x, head_y, 0, 350, 118, 110))

        fold = 0.5 + 0.5 * np.sin(body_x / 47 + 0.6 * np.sin(body_y / 60))
        rows = 0.5 + 0.5 * np.sin(body_y / 4.2)
        shade = 0.55 + 0.25 * np.sqrt(np.clip(1 - (body_x / 330) ** 2, 0, 1)) - 0.12 * body_x / 330
        cloth = shade * (0.80 + 0.12 * fold + 0.10 * rows + 0.14 * lookup(knit, body_x, body_y, unit))
        shoulders = (np.abs(body_x / 315) ** 2.6 + np.abs((body_y - 800) / 310) ** 2.6) ** (1 / 2.6) - 1
        put(cloth[..., None] * np.float32([0.24, 0.45, 0.60]), shoulders * 300)
        put(skin(body_x, body_y, 0, 440, 95, 260, grain, unit) * 0.82, ellipse(body_x, body_y, 0, 440, 58, 106))
        collar = np.maximum(np.abs(ellipse(body_x, body_y, 0, 452, 74, 100)) - 10, 492 - body_y)
        put(cloth[..., None] * np.float32([0.86, 0.85, 0.80]), collar)

        face = skin(head_x, head_y, 0, 290, 104, 140, grain, unit)
        for side in (-1, 1):
            put(face * 0.85, ellipse(head_x, head_y, 99 * side, 292, 15, 30))
        put(face, ellipse(head_x, head_y, 0, 290, 97, 132))
        fringe = np.maximum(ellipse(head_x, head_y, 0, 276, 112, 142), head_y - 222 + 0.004 * (head_x + 45) ** 2)
        put(hair * 1.15, fringe)

        put(face * 0.74, ellipse(head_x, head_y, 4, 321, 16, 7), 0.7, 5)
        put(np.minimum(face * 1.16, 1), ellipse(head_x, head_y, -3, 300, 6, 30), 0.6, 6)
        lids = 11 * np.clip(abs((time + 0.9) % 2.6 - 1.3) / 0.09, 0.08, 1)
        look = 3.5 * sin(1.3 * time)
        for side in (-1, 1):
            eye = ellipse(head_x, head_y, 40 * side, 272, 19, lids)
            put([0.92, 0.91, 0.88], eye)
            put([0.24, 0.36, 0.30], np.maximum(ellipse(head_x, head_y, 40 * side + look, 272, 9, 9), eye))
            put([0.04, 0.04, 0.04], np.maximum(ellipse(head_x, head_y, 40 * side + look, 272, 4.5, 4.5), eye))
            put([0.95, 0.95, 0.95], np.maximum(ellipse(head_x, head_y, 40 * side + look - 3, 268, 2, 2), eye))
            put([0.28, 0.17, 0.12], np.abs(eye) - 1.4, 0.8)
            brow = head_y - 240 - 2 * sin(3.1 * time) - 0.008 * (head_x - 42 * side) ** 2
            put(hair, np.maximum(np.abs(brow) - 4.5, np.abs(head_x - 41 * side) - 25), 0.9, 1.5)
        # Syllables: two rhythms that rarely agree.
        opening = 3 + 11 * abs(sin(11.0 * time + 0.4)) * (0.55 + 0.45 * sin(4.7 * time))
        wide, smile = 35 - 0.4 * opening, head_y - 360 - opening / 2 + 0.007 * head_x**2
        mouth = ellipse(head_x, smile, 0, 0, wide, opening)
        put(face * np.float32([0.80, 0.55, 0.55]), ellipse(head_x, smile, 0, 0, wide + 3, opening + 8))
        put([0.20, 0.06, 0.06], mouth)
        put([0.90, 0.88, 0.83], np.maximum(mouth + 1, smile + 0.4 * opening))
        return picture

    return paint


def pan(width: int, height: int) -> Painter:
    """Clouds, mountains, wooded hills, a meadow and a fence, each nearer layer faster: 1 to 13 pixels a frame."""
    rng = np.random.default_rng(5)
    unit = height / 720
    layers = []
    for name, speed in (("sky", 24), ("mountains", 72), ("hills", 132), ("meadow", 216), ("fence", 312)):
        layers.append((speed * unit, *_layer(rng, name, ceil(width + WAY_OUT * speed * unit) + 4, height)))

    def paint(time: float) -> Plane:
        way = WAY_OUT - abs(time % (2 * WAY_OUT) - WAY_OUT)
        picture = np.zeros((height, width, 3), np.float32)
        for speed, colour, cover in layers:
            seen = window(cover[..., None], way * speed, width)
            picture += seen * (window(colour, way * speed, width) - picture)
        return picture

    return paint


def confetti(width: int, height: int) -> Painter:
    """500 pieces of paper that fall 4 to 13 pixels a frame, sway, turn and flip before a curtain that is still."""
    rng = np.random.default_rng(11)
    unit, x, y = coordinates(width, height)
    folds = x / 26 + 2.5 * noise(rng, height, width, (900 * unit, 160 * unit), 3)
    weave = noise(rng, height, width, 6 * unit, 2) + noise(rng, height, width, 120 * unit, 5)
    light = 0.45 + 0.85 * np.exp(-((x / 520) ** 2) - ((y - 260) / 420) ** 2)
    cloth = light * (0.62 + 0.30 * np.sin(folds) + 0.08 * np.sin(2.3 * folds)) * (0.75 + 0.25 * weave)
    curtain = cloth[..., None] * np.float32([0.42, 0.16, 0.30])
    count = 500
    palette = np.float32(
        [[0.95, 0.25, 0.25], [0.98, 0.80, 0.20], [0.25, 0.75, 0.40], [0.25, 0.50, 0.95], [0.95, 0.95, 0.92]]
    )
    reach = width / unit / 2 + 30
    start = rng.uniform((-reach, 0), (reach, 780), (count, 2))
    fall, turn, flip = rng.uniform(100, 310, count), rng.uniform(-5, 5, count), rng.uniform(3, 11, count)
    phase, sides = rng.uniform(0, 2 * pi, (count, 2)), rng.uniform((9, 7), (26, 15), (count, 2))

    def paint(time: float) -> Plane:
        picture = curtain.copy()
        for one in range(count):
            left = start[one, 0] + 16 * sin(2.2 * time + phase[one, 0])
            top = (start[one, 1] + fall[one] * time) % 780 - 30
            tilt = cos(flip[one] * time + phase[one, 1])
            around = ceil(18 * unit) + 1
            row, column = round(top * unit), round(left * unit + width / 2)
            box = (
                slice(max(0, row - around), max(0, row + around)),
                slice(max(0, column - around), max(0, column + around)),
            )
            right, down = x[box] - left, y[box] - top
            angle = turn[one] * time + phase[one, 0]
            along, across = right * cos(angle) + down * sin(angle), down * cos(angle) - right * sin(angle)
            inside = np.maximum(
                np.abs(along) - sides[one, 0] / 2, np.abs(across) - sides[one, 1] / 2 * max(abs(tilt), 0.08)
            )
            draw(picture[box], palette[one % len(palette)] * (0.5 + 0.5 * abs(tilt)), inside * unit)
        return picture

    return paint


SCENES: dict[str, Callable[[int, int], Painter]] = {"talking-head": talking_head, "pan": pan, "confetti": confetti}
"""By name: (width, height) in pixels -> what paints it."""


def _room(rng: np.random.Generator, width: int, height: int) -> Plane:
    """A plastered wall, a shelf of books, a picture and a lamp's light."""
    unit, x, y = coordinates(width, height)
    plaster = noise(rng, height, width, 90 * unit, 6) * 0.5 + noise(rng, height, width, 5 * unit, 2) * 0.5
    room = (0.80 + 0.20 * plaster)[..., None] * np.float32([0.74, 0.70, 0.62])
    wood = noise(rng, height, width, (14 * unit, 220 * unit), 4)[..., None] * np.float32([0.20, 0.13, 0.08]) + 0.16
    edge = width / unit / 2
    draw(room, wood * 0.45, (215 - x) * unit)
    for bottom in range(40, 900, 175):
        # Books are many: each shelf is drawn within its own rows.
        shelf = (
            slice(max(0, round((bottom - 155) * unit)), round((bottom + 20) * unit)),
            slice(x[0].searchsorted(200), None),
        )
        target, shelf_x, shelf_y, stain = room[shelf], x[shelf], y[shelf], 0.12 * (plaster[shelf] - 0.5)
        left = 232.0
        while left < edge and target.size:
            thick, tall = rng.uniform(13, 36), rng.uniform(105, 150)
            from_middle = shelf_x - left - thick / 2
            back = np.maximum(np.abs(from_middle) - thick / 2 + 1, np.abs(shelf_y - bottom + tall / 2) - tall / 2)
            light = (0.75 + 0.25 * np.cos(from_middle / thick * 2.4) + stain)[..., None]
            colour = rng.uniform(0.12, 0.62, 3) * rng.uniform(0.6, 1.1)
            draw(target, light * colour, back * unit)
            for band in rng.uniform(0.12, 0.88, rng.integers(0, 4)):
                stripe = np.abs(shelf_y - bottom + tall * band) - rng.uniform(1.5, 6)
                draw(target, light * (colour * 0.4 + 0.45), np.maximum(back + 1, stripe) * unit)
            left += thick + (rng.uniform(20, 50) if rng.random() < 0.12 else 0)
        draw(target, wood[shelf], np.maximum(np.abs(shelf_y - bottom - 8) - 8, 215 - shelf_x) * unit)
    draw(room, wood, (np.abs(x - 222) - 9) * unit)
    left, top, wide, high = -edge * 0.86, 90, 300, 210
    frame = np.maximum(np.abs(x - left - wide / 2) - wide / 2, np.abs(y - top - high / 2) - high / 2)
    draw(room, [0.25, 0.22, 0.20], (frame - 16) * unit / 10, 0.35)
    draw(room, wood * 0.7, (frame - 12) * unit)
    draw(room, [0.90, 0.88, 0.84], frame * unit)
    rows, columns = round(170 * unit), round(260 * unit)
    at_row, at_column = round((top + 20) * unit), round((left + 20) * unit + width / 2)
    room[at_row : at_row + rows, at_column : at_column + columns] = pan(columns, rows)(0.0)
    lamp = 0.62 + 0.50 * np.exp(-(((x + edge * 0.55) / 620) ** 2) - ((y - 120) / 520) ** 2)
    return np.clip(room * lamp[..., None], 0, 1).astype(np.float32)


def _layer(rng: np.random.Generator, name: str, width: int, height: int) -> tuple[Plane, Plane]:
    """Colours [H, W, 3] and cover [H, W] of one layer of the landscape."""
    unit, x, y = coordinates(width, height)
    fine = noise(rng, height, width, 40 * unit, 5)
    if name == "sky":
        clouds = np.clip(1.9 * noise(rng, height, width, (110 * unit, 300 * unit), 6) - 0.75, 0, 1)[..., None]
        blue = np.float32([0.30, 0.52, 0.82]) + (y / 460)[..., None] * np.float32([0.42, 0.30, 0.10])
        return blue + clouds * (np.float32([0.98, 0.96, 0.93]) - blue), np.ones((height, width), np.float32)
    if name == "fence":
        near = x % 128 - 64
        posts = np.maximum(np.abs(near + 3 * np.sin(x // 128)) - 9, 520 - y + 8 * np.sin(5 * (x // 128)))
        rails = np.minimum(np.abs(y - 575 - 3 * np.sin(x / 90)), np.abs(y - 650 - 3 * np.sin(x / 70))) - 6
        grain = noise(rng, height, width, (70 * unit, 8 * unit), 3)
        wood = (0.20 + 0.28 * grain - 0.010 * np.where(np.abs(near) < 12, near, 0))[..., None] * np.float32(
            [1.0, 0.85, 0.70]
        )
        return wood, np.clip(0.5 - np.minimum(posts, rails) * unit, 0, 1)
    base, rise, scale = {"mountains": (300, 190, 330), "hills": (400, 120, 260), "meadow": (500, 50, 400)}[name]
    ridge = base - rise * (noise(rng, 2, width, scale * unit, 7)[:1] - 0.5)
    if name == "hills":  # treetops
        ridge = ridge - 26 * noise(rng, 2, width, 16 * unit, 3)[:1]
    cover = np.clip(0.5 + (y - ridge) * unit, 0, 1)
    if name == "mountains":
        slope = noise(rng, height, width, (130 * unit, 100 * unit), 7)
        snow = np.clip((235 + 90 * fine - y) / 14, 0, 1)[..., None]
        rock = (0.38 + 0.34 * slope)[..., None] * np.float32([0.80, 0.88, 1.05])
        return rock + snow * ((0.62 + 0.36 * slope)[..., None] - rock), cover
    if name == "hills":
        crowns = noise(rng, height, width, 22 * unit, 4)
        return (0.14 + 0.42 * crowns * (0.5 + 0.5 * fine))[..., None] * np.float32([0.62, 1.0, 0.55]), cover
    blades = noise(rng, height, width, (26 * unit, 6 * unit), 3)
    flowers = np.clip(8 * noise(rng, height, width, 5 * unit, 2) - 7.2, 0, 1)[..., None]
    meadow = (0.30 + 0.25 * fine + 0.30 * blades * np.clip((y - 470) / 200, 0.2, 1))[..., None]
    green = meadow * np.float32([0.72, 0.88, 0.34])
    return green + flowers * (np.float32([0.95, 0.85, 0.55]) - green), cover


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SCENES))
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    write_clip(SCENES[arguments.name](width, height), arguments.output, arguments.seconds)


if __name__ == "__main__":
    main()
