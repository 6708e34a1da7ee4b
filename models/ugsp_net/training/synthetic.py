"""Layered motion of real textures, whose flow between any two instants is known exactly.

Each layer has a texture, an opacity and a similarity motion (shift, turn, zoom about a centre) that is linear in time.
A layer's point u lies at ``place(time, u)``; the picture at a time shows, for each pixel x, the topmost layer that is
opaque at ``locate(time, x)``. The flow from t to another time follows the layer that is seen at t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Motion:
    """Similarity motions of B x K layers about their centres, linear in time; all [B, K], pixels and radians."""

    centre: Tensor
    """[B, K, 2] (x, y)."""
    shift: Tensor
    """[B, K, 2] (x, y), from time 0 to time 1."""
    turn: Tensor
    """Radians from time 0 to time 1."""
    zoom: Tensor
    """Logarithm of the enlargement from time 0 to time 1."""

    def place(self, time: Tensor, points: Tensor) -> Tensor:
        """Where texture points [B, K, H, W, 2] lie at a time [B]."""
        return self._turn(points - self._centre(), time, 1) + self._centre() + self._shift(time)

    def locate(self, time: Tensor, points: Tensor) -> Tensor:
        """Inverse of ``place``."""
        return self._turn(points - self._centre() - self._shift(time), time, -1) + self._centre()

    def _centre(self) -> Tensor:
        return self.centre[:, :, None, None, :]

    def _shift(self, time: Tensor) -> Tensor:
        return (self.shift * time[:, None, None])[:, :, None, None, :]

    def _turn(self, points: Tensor, time: Tensor, sign: int) -> Tensor:
        angle = (sign * self.turn * time[:, None])[:, :, None, None]
        scale = (sign * self.zoom * time[:, None]).exp()[:, :, None, None]
        cos, sin = scale * angle.cos(), scale * angle.sin()
        x, y = points.unbind(-1)
        return torch.stack((cos * x - sin * y, sin * x + cos * y), dim=-1)


def random_motion(batch: int, layers: int, size: int, largest: float, generator: torch.Generator) -> Motion:
    """Motions whose shifts spread over magnitudes up to ``largest`` pixels; about one layer in six stays still."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centre = uniform(batch, layers, 2) * size
    angle = uniform(batch, layers) * 2 * math.pi
    length = largest * uniform(batch, layers) ** 2
    moving = (uniform(batch, layers) > 1 / 6).float()
    shift = torch.stack((angle.cos(), angle.sin()), -1) * (length * moving)[..., None]
    turn = 0.08 * normal(batch, layers) * moving
    zoom = 0.05 * normal(batch, layers) * moving
    return Motion(centre, shift, turn, zoom)


def random_opacity(batch: int, layers: int, size: int, generator: torch.Generator) -> Tensor:
    """Opacity [B, K, 1, size, size] of layers over each other; layer 0 is opaque, the others blobs, bars or grids."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    opacity = torch.ones(batch, layers, 1, size, size)
    for picture in range(batch):
        for layer in range(1, layers):
            kind = torch.rand((), generator=generator).item()
            a, b, c, d = torch.rand(4, generator=generator).tolist()
            if kind < 0.6:  # a blob: smooth noise above a level
                cells = 3 + int(4 * a)
                noise = torch.rand(1, 1, cells, cells, generator=generator)
                field = F.interpolate(noise, (size, size), mode="bicubic", align_corners=False)[0, 0]
                shape = (field > 0.45 + 0.25 * b).float()
            elif kind < 0.8:  # a bar, thin or wide, at any angle
                angle = math.pi * a
                across = (x - 0.3 - 0.4 * b) * math.cos(angle) + (y - 0.3 - 0.4 * c) * math.sin(angle)
                shape = (across.abs() < 0.01 + 0.12 * d**2).float()
            elif kind < 0.9:  # a lattice of thin lines
                step = 0.06 + 0.12 * a
                shape = (((x + b) % step < 0.012) | ((y + c) % step < 0.012)).float()
            else:  # rows of strokes, like text
                row = ((y + a) % 0.14 < 0.08) & (y > 0.2 * b) & (y < 0.6 + 0.4 * c)
                noise = torch.rand(1, 1, size // 4, size // 3, generator=generator)
                strokes = F.interpolate(noise, (size, size), mode="nearest")[0, 0] > 0.55
                shape = (row & strokes).float()
            opacity[picture, layer, 0] = shape
    # A soft edge of one pixel, as a camera gives.
    return F.avg_pool2d(opacity.flatten(0, 1), 3, stride=1, padding=1).view_as(opacity)


def render(textures: Tensor, opacity: Tensor, motion: Motion, t: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Frames at the times 0, t, 1 and the flow from t to 0 and to 1.

    textures: [B, K, 3, S, S] in [0, 1]; opacity: [B, K, 1, S, S]; S >= size, the picture is the textures' middle;
    t: [B]. Returns frames [B, 3, 3, size, size] and flow [B, 4, size, size] in pixels.
    """
    batch, layers, _, full = textures.shape[:4]
    margin = (full - size) / 2
    axis = torch.arange(size, dtype=torch.float32) + margin
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pixels = torch.stack((x, y), dim=-1)[None, None].expand(batch, layers, size, size, 2)
    painted = torch.cat((textures * opacity, opacity), dim=2).flatten(0, 1)  # [B * K, 4, S, S], premultiplied
    frames = []
    flow = torch.zeros(batch, 4, size, size)
    for index, time in enumerate((torch.zeros_like(t), t, torch.ones_like(t))):
        where = motion.locate(time, pixels)  # [B, K, size, size, 2]
        grid = (where.flatten(0, 1) + 0.5) * (2 / full) - 1
        seen = F.grid_sample(painted, grid, padding_mode="reflection", align_corners=False)
        seen = seen.view(batch, layers, 4, size, size)
        picture = seen[:, 0, :3]
        for layer in range(1, layers):
            picture = seen[:, layer, :3] + (1 - seen[:, layer, 3:]) * picture
        frames.append(picture)
        if index == 1:
            to0 = motion.place(torch.zeros_like(t), where) - pixels
            to1 = motion.place(torch.ones_like(t), where) - pixels
            both = torch.cat((to0, to1), dim=-1).permute(0, 1, 4, 2, 3)  # [B, K, 4, size, size]
            flow = both[:, 0]
            for layer in range(1, layers):
                flow = torch.where(seen[:, layer, 3:] > 0.5, both[:, layer], flow)
    return torch.stack(frames, dim=1), flow
