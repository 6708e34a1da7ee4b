"""Layered motion of real textures, whose flow between any two instants is known exactly.

Each layer has a texture, an opacity and a motion: a similarity (shift, turn, zoom about a centre) and, where the layer
bends, two waves. A layer's point u lies at ``place(time, u)``; the picture at a time shows, for each pixel x, the
topmost layer that is opaque at ``locate(time, x)``. The flow from t to another time follows the layer that is seen at
t. Everything is made on the device of its inputs or of the generator. Points x + iy are complex numbers inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS = 3
"""Layers of a training picture."""
MARGIN = 64
"""How much larger than the picture its textures are, pixels."""
BENT = 1 / 3
"""Share of the moving layers that bend."""
LIT = 0.15
"""Share of the pictures whose brightness changes, as a whole or in one layer."""
OVERLAID = 0.15
"""Share of the pictures whose topmost layer is text or a logo that stays where it is."""
PLAIN = 0.3
"""Share of the upper layers in a plain colour, as letters and logos have."""


@dataclass(frozen=True)
class Waves:
    """Two shear waves for each of N layers, one after the other, whose heights are linear in time.

    A wave moves points along its crests, by what depends on their position across the crests alone. That position stays
    the same, so the way back is known exactly.
    """

    layers: Tensor
    """[N] int64: which layers these are, counted through all pictures."""
    vector: Tensor
    """[N, 2] complex: across the crests, radians per pixel."""
    height: Tensor
    """[N, 2]: pixels at time 1."""
    phase: Tensor
    """[N, 2]: radians."""

    def bend(self, time: Tensor, points: Tensor, back: bool = False) -> Tensor:
        """Move complex points [N, H, W] of the textures to where they are at the times [N], or back."""
        for wave in (1, 0) if back else (0, 1):
            vector = self.vector[:, wave, None, None]
            across = points.real * vector.real + points.imag * vector.imag
            height = (-time if back else time) * self.height[:, wave]
            moved = across.add_(self.phase[:, wave, None, None]).sin_().mul_(height[:, None, None])
            points = points + moved * (1j * vector / vector.abs())
        return points


@dataclass(frozen=True)
class Motion:
    """Motions of B x K layers, linear in time: similarities about their centres, after waves. Pixels and radians."""

    centre: Tensor
    """[B, K, 2] (x, y)."""
    shift: Tensor
    """[B, K, 2] (x, y), from time 0 to time 1."""
    turn: Tensor
    """[B, K]: radians from time 0 to time 1."""
    zoom: Tensor
    """[B, K]: logarithm of the enlargement from time 0 to time 1."""
    waves: Waves | None = None
    """Of the layers that bend."""

    def place(self, time: Tensor, points: Tensor) -> Tensor:
        """Where texture points [B, K, H, W, 2] lie at a time [B]."""
        factor, offset = (values[..., None, None] for values in self.similarity(time))
        bent = self.bend_(time, torch.view_as_complex(points.clone(memory_format=torch.contiguous_format)))
        return torch.view_as_real(factor * bent + offset)

    def locate(self, time: Tensor, points: Tensor) -> Tensor:
        """Inverse of ``place``."""
        factor, offset = (values[..., None, None] for values in self.similarity(time))
        straight = (torch.view_as_complex(points.contiguous()) - offset) / factor
        return torch.view_as_real(self.bend_(time, straight, back=True))

    def similarity(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Complex factor and offset [B, K] that take texture points to their places at a time [B], but for waves."""
        time = time[:, None]
        factor = torch.polar((self.zoom * time).exp(), self.turn * time)
        centre, shift = (torch.view_as_complex(values.contiguous()) for values in (self.centre, self.shift))
        return factor, centre + shift * time - factor * centre

    def bend_(self, time: Tensor, points: Tensor, back: bool = False) -> Tensor:
        """Move complex texture points [B, K, H, W] in place, as the waves do until a time [B], or back."""
        if self.waves is not None:
            some, flat = self.waves.layers, points.flatten(0, 1)
            flat[some] = self.waves.bend(time.repeat_interleave(points.shape[1])[some], flat[some], back)
        return points


@dataclass(frozen=True)
class Light:
    """Brightness of layers, linear in time: a colour c turns into (1 + gain * time) * c + offset * time."""

    gain: Tensor
    """[B, K]: at time 1."""
    offset: Tensor
    """[B, K]: at time 1, in parts of white."""


def random_scene(
    textures: Tensor, size: int, largest: float, generator: torch.Generator, middle_only: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames [B, 3, 3, size, size] uint8 at 0, t and 1, the instants t [B], and the flow [B, 4, size, size] fp16.

    Everything but the textures is drawn here.

    textures: [B, K, 3, S, S] in [0, 1], on the generator's device, changed in place; largest: shift in pixels;
    middle_only: every t is 0.5.
    """
    batch, layers, _, full = textures.shape[:4]
    uniform = _uniform(generator)
    t = uniform(batch) * 0.8 + 0.1
    t = torch.where((uniform(batch) < 0.3) | middle_only, 0.5, t)
    overlaid = (uniform(batch) < OVERLAID) & (layers > 1)
    plain = uniform(batch, layers) < PLAIN
    plain[:, 0] = False
    plain[:, -1] |= overlaid & (uniform(batch) < 0.7)
    some = plain.nonzero(as_tuple=True)
    bright = textures[some].mean((-1, -2), keepdim=True) * (0.3 + 1.2 * uniform(len(some[0]), 1, 1, 1))
    textures[some] = bright.clamp(0, 1).expand(-1, -1, full, full)
    opacity = random_opacity(batch, layers, full, generator, overlaid)
    motion = random_motion(batch, layers, full, largest, generator, overlaid)
    light = random_light(batch, layers, generator)
    # The first frame shows the textures as they are, the others are sampled and less sharp; half of them go backwards.
    swap = uniform(batch) < 0.5
    frames, flow = render(textures, opacity, motion, torch.where(swap, 1 - t, t), size, light)
    pictures = frames.mul_(255).round_().to(torch.uint8)
    pictures[swap] = pictures[swap].flip(1)
    flow[swap] = flow[swap].roll(2, 1)
    return pictures, t, flow.half()


def random_motion(
    batch: int,
    layers: int,
    size: int,
    largest: float,
    generator: torch.Generator,
    overlaid: Tensor | None = None,
) -> Motion:
    """Motions whose shifts spread over magnitudes up to ``largest`` pixels; about one layer in six stays still.

    overlaid: [B] bool, the pictures whose topmost layer stays still while the others do not.
    """
    uniform = _uniform(generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    centre = uniform(batch, layers, 2) * size
    angle = uniform(batch, layers) * 2 * math.pi
    length = largest * uniform(batch, layers) ** 2
    moving = uniform(batch, layers) > 1 / 6
    if overlaid is not None:
        moving |= overlaid[:, None]
        moving[:, -1] &= ~overlaid
    shift = torch.stack((angle.cos(), angle.sin()), -1) * (length * moving)[..., None]
    turn = 0.08 * normal(batch, layers) * moving
    zoom = 0.05 * normal(batch, layers) * moving
    some = (moving & (uniform(batch, layers) < BENT)).flatten().nonzero()[:, 0]
    if not len(some):
        return Motion(centre, shift, turn, zoom)
    # From a quarter of the texture to all of it between crests; points beside each other move apart by 0.35 at most.
    wave = 2 * math.pi / size / (0.25 + 0.75 * uniform(len(some), 2))
    steepest = torch.minimum(torch.full_like(wave, largest / 4), 0.35 / wave)
    height = steepest * (2 * uniform(len(some), 2) - 1)
    phase, across = (2 * math.pi * uniform(2, len(some), 2)).unbind()
    return Motion(centre, shift, turn, zoom, Waves(some, torch.polar(wave, across), height, phase))


def random_light(batch: int, layers: int, generator: torch.Generator) -> Light:
    """Brightness that changes in some pictures: in half of those in every layer alike, in half in one layer."""
    uniform = _uniform(generator)
    lit = uniform(batch, 1) < LIT
    whole = uniform(batch, 1) < 0.5
    one = torch.arange(layers, device=generator.device) == torch.floor(layers * uniform(batch, 1))
    chosen = lit & (whole | one)
    gain, offset = 0.8 * uniform(batch, 1) - 0.4, 0.3 * uniform(batch, 1) - 0.15
    return Light(gain * chosen, offset * chosen)


def random_opacity(
    batch: int, layers: int, size: int, generator: torch.Generator, overlaid: Tensor | None = None
) -> Tensor:
    """Opacity [B, K, 1, size, size] of layers over each other; layer 0 is opaque, the others blobs, bars or grids.

    overlaid: [B] bool, the pictures whose topmost layer is text or a logo.
    """
    uniform = _uniform(generator)
    device = generator.device
    opacity = torch.ones(batch, layers, 1, size, size, device=device)
    if layers == 1:
        return opacity
    count = batch * (layers - 1)
    # One pixel more on every side, for the soft edge.
    axis = torch.arange(-1, size + 1, device=device) / size
    x, y = axis[None, None, :], axis[None, :, None]
    kind = uniform(batch, layers - 1)
    if overlaid is not None:
        kind[:, -1] = torch.where(overlaid, 2.0, kind[:, -1])
    kind = kind.flatten()
    parameters = uniform(4, count, 1, 1)
    shapes = torch.empty(count, size + 2, size + 2, device=device)

    some, (a, b, _, _) = _where(kind < 0.6, parameters)  # blobs: smooth noise above a level
    up = _enlarge(axis * (3 + 4 * a[:, 0]) + 2)
    noise = uniform(len(some), up.shape[-1], up.shape[-1])
    shapes[some] = (up @ noise @ up.mT > 0.45 + 0.25 * b).float()

    some, (a, b, c, d) = _where((kind >= 0.6) & (kind < 0.8), parameters)  # bars, thin or wide, at any angle
    a = math.pi * a
    across = (x - 0.3 - 0.4 * b) * a.cos() + (y - 0.3 - 0.4 * c) * a.sin()
    shapes[some] = (across.abs() < 0.01 + 0.12 * d**2).float()

    some, (a, b, c, _) = _where((kind >= 0.8) & (kind < 0.9), parameters)  # lattices of thin lines
    step = 0.06 + 0.12 * a
    shapes[some] = (((x + b) % step < 0.012) | ((y + c) % step < 0.012)).float()

    some, (a, b, c, _) = _where((kind >= 0.9) & (kind <= 1), parameters)  # rows of strokes, like text
    row = ((y + a) % 0.14 < 0.08) & (y > 0.2 * b) & (y < 0.6 + 0.4 * c)
    shapes[some] = (row & _strokes(len(some), size, uniform)).float()

    some, (a, b, c, d) = _where(kind > 1, parameters)  # overlays: strokes in a box, or the box itself
    # What is wide is low, so that captions, logos and plates come out; the middle of a box lies well inside.
    width, height = 0.1 + 0.5 * d**2, 0.05 + 0.1 * a
    box = ((x - 0.25 - 0.5 * b).abs() < width / 2) & ((y - 0.25 - 0.5 * c).abs() < height)
    full = uniform(len(some), 1, 1) < 0.3
    shapes[some] = (box & (full | ((y / height % 0.7 < 0.45) & _strokes(len(some), size, uniform)))).float()

    # A soft edge of one pixel, as a camera gives.
    rows = shapes[:, :-2] + shapes[:, 1:-1] + shapes[:, 2:]
    soft = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    opacity[:, 1:, 0] = soft.div_(9).view(batch, layers - 1, size, size)
    return opacity


def render(
    textures: Tensor, opacity: Tensor, motion: Motion, t: Tensor, size: int, light: Light | None = None
) -> tuple[Tensor, Tensor]:
    """Frames at the times 0, t, 1 and the flow from t to 0 and to 1.

    textures: [B, K, 3, S, S] in [0, 1]; opacity: [B, K, 1, S, S], 1 in layer 0; S >= size by an even number, the
    picture is the textures' middle; t: [B]. Returns frames [B, 3, 3, size, size] in [0, 1] and flow
    [B, 4, size, size] in pixels.
    """
    batch, layers, _, full = textures.shape[:4]
    if (full - size) % 2:
        raise ValueError(f"textures of {full} pixels have no middle of {size}")
    margin = (full - size) // 2
    axis = torch.arange(margin, margin + size, device=t.device)
    middle = slice(margin, margin + size)
    one = torch.ones_like(t)
    factor, offset = motion.similarity(t)
    factor1, offset1 = motion.similarity(one)
    seen_at_t = motion.bend_(t, _grid(1 / factor, -offset / factor, axis), back=True)  # texture points
    seen_at_1 = motion.bend_(one, _grid(1 / factor1, -offset1 / factor1, axis), back=True)
    points = torch.stack((seen_at_t, seen_at_1), dim=2)  # [B, K, 2, size, size]
    times = torch.stack((t, one), dim=1)

    frames = textures.new_empty(batch, 3, 3, size, size)
    through = textures.new_empty(batch, layers, size, size)
    # The processor is twice as fast where the layers fit its cache: a picture at a time.
    step = 1 if textures.device.type == "cpu" else batch
    for start in range(0, batch, step):
        part = slice(start, start + step)
        painted = torch.cat((textures[part] * opacity[part], 1 - opacity[part]), dim=2)
        seen = _sample(painted, points[part])
        if light is not None:
            _illuminate(seen, light, part, times)
        through[part] = seen[:, :, 3, 0]
        # At time 0 every texture lies where it is.
        frames[part, 0] = _compose(painted[..., middle, middle])
        frames[part, 1:] = _compose(seen).transpose(1, 2)
    frames.clamp_(0, 1)

    # Where there are no waves, what lies at x at t moves by a linear function of x.
    turned = torch.stack((1 / factor, factor1 / factor), dim=1)  # [B, 2, K]: to 0, to 1
    origin = torch.stack((-offset / factor, offset1 - factor1 * offset / factor), dim=1)
    moved = _grid(turned - 1, origin, axis)  # [B, 2, K, size, size]
    if motion.waves is not None:
        some = motion.waves.layers
        picture, which = some // layers, some % layers
        pixels = torch.complex(*(values.float() for values in torch.meshgrid(axis, axis, indexing="xy")))
        points = seen_at_t[picture, which]
        moved[picture, 0, which] = points - pixels
        bent = motion.waves.bend(one[picture], points)
        factor1, offset1 = (values[picture, which, None, None] for values in (factor1, offset1))
        moved[picture, 1, which] = factor1 * bent + offset1 - pixels
    flow = moved[:, :, 0]
    for layer in range(1, layers):
        flow = torch.where(through[:, None, layer] < 0.5, moved[:, :, layer], flow)
    return frames, torch.view_as_real(flow).permute(0, 1, 4, 2, 3).reshape(batch, 4, size, size)


def _grid(factor: Tensor, offset: Tensor, axis: Tensor) -> Tensor:
    """factor * (x + iy) + offset, [..., S, S], at all pixels: a row and a column, added once."""
    factor, offset = factor[..., None], offset[..., None]
    return (factor * axis)[..., None, :] + (factor * 1j * axis + offset)[..., :, None]


def _sample(painted: Tensor, points: Tensor) -> Tensor:
    """Layers [B, K, 4, S, S] at complex points [B, K, T, H, W] -> [B, K, 4, T, H, W]."""
    full = painted.shape[-1]
    grid = torch.view_as_real(points.flatten(0, 1).flatten(1, 2)) * (2 / full) + (1 / full - 1)
    seen = F.grid_sample(painted.flatten(0, 1), grid, padding_mode="reflection", align_corners=False)
    return seen.view(*points.shape[:2], 4, *points.shape[2:])


def _illuminate(seen: Tensor, light: Light, part: slice, times: Tensor) -> None:
    """Change the colours of layers [B, K, 4, T, H, W] in place, as at the times [B, T]; part: which of all pictures."""
    gain, offset = light.gain[part, :, None, None], light.offset[part, :, None, None]
    if gain.any() or offset.any():
        times = times[part, None, None, :]
        gain, offset = ((values * times)[..., None, None] for values in (gain, offset))
        seen[:, :, :3] += gain * seen[:, :, :3] + offset * (1 - seen[:, :, 3:])


def _compose(seen: Tensor) -> Tensor:
    """Layers [B, K, 4, ...] over each other, [B, 3, ...]."""
    picture = seen[:, 0, :3]
    for layer in range(1, seen.shape[1]):
        picture = torch.addcmul(seen[:, layer, :3], picture, seen[:, layer, 3:])
    return picture


def _enlarge(positions: Tensor) -> Tensor:
    """Matrices [N, S, C] of cubic interpolation at positions [N, S] among C samples."""
    samples = torch.arange(12, device=positions.device)
    d = (positions[..., None] - samples).abs().clamp_(max=2)
    return torch.where(d < 1, (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3)


def _strokes(count: int, size: int, uniform: Callable[..., Tensor]) -> Tensor:
    """Random black and white cells of 4 by 3 pixels, [count, size + 2, size + 2]."""
    cells = uniform(count, size // 4 + 2, size // 3 + 2) > 0.55
    return cells.repeat_interleave(4, 1).repeat_interleave(3, 2)[:, : size + 2, : size + 2]


def _where(chosen: Tensor, parameters: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Which shapes are chosen, and their parameters."""
    some = chosen.nonzero()[:, 0]
    return some, parameters[:, some].unbind()


def _uniform(generator: torch.Generator) -> Callable[..., Tensor]:
    """Draws numbers from 0 to 1 where the generator is."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    return draw
