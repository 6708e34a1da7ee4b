"""Windows: they cover the picture, their seams do not show, and their margins count as work."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_cli.decode import Frame
from ugsp_cli.engine import EngineOptions, Interpolator, Made, Request
from ugsp_cli.pixels import RGB, ColourTags
from ugsp_cli.windows import MARGIN, split
from ugsp_net.cost import network_cost
from ugsp_net.network import Interpolation

WIDTH, HEIGHT = 1024, 256
"""Two windows of 768x256, whose seam is at 512."""


@pytest.mark.parametrize(("rows", "columns"), [(1088, 1920), (272, 4096), (1040, 1040), (240, 320)])
@pytest.mark.parametrize("halvings", range(6))
def test_cells_cover_every_pixel_once(rows: int, columns: int, halvings: int) -> None:
    windows = split(rows, columns, halvings, 16)
    covered = torch.zeros(1, 1, rows, columns)
    for window in windows:
        assert all(start % 16 == 0 for start, _ in (window.rows, window.columns, window.cell_rows, window.cell_columns))
        top, left = max(0, window.cell_rows[0] - MARGIN), max(0, window.cell_columns[0] - MARGIN)
        assert (window.rows[0], window.columns[0]) == (top, left)
        assert window.seen(covered)[0, 0].numel() == window.pixels
        once = torch.zeros_like(covered)
        window.keep(torch.ones_like(window.seen(covered)), once)
        covered += once
    assert covered.min() == covered.max() == 1
    assert len(windows) <= 2**halvings


def test_more_halvings_mean_smaller_windows_down_to_the_least() -> None:
    largest = [max(window.pixels for window in split(2160, 3840, halvings, 16)) for halvings in range(9)]
    assert largest[0] == 2160 * 3840
    assert largest[:8] == sorted(largest[:8], reverse=True)
    assert largest[6] == largest[8] < 1024 * 1024


def texture(height: int, width: int, seed: int) -> Tensor:
    """[3, height, width] in [0, 1]: noise of every scale, as photographs have it."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(1, 3, height, width)
    for scale in (4, 8, 16, 32, 64):
        noise = torch.rand(1, 3, height // scale + 2, width // scale + 2, generator=generator)
        out += scale**0.5 * F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return ((out - out.min()) / (out.max() - out.min()))[0]


def moving(count: int) -> list[Frame]:
    """A background that pans by 12 pixels a frame, and a disc on the seam that crosses it by 10 the other way."""
    ground, thing = texture(HEIGHT, WIDTH + 128, 0), texture(HEIGHT, WIDTH + 128, 1)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    frames = []
    for index in range(count):
        disc = (x - WIDTH / 2 - 20 + 10 * index) ** 2 + (y - HEIGHT / 2) ** 2 < 80**2
        picture = torch.where(disc, thing[:, :, 10 * index :][..., :WIDTH], ground[..., 64 - 12 * index :][..., :WIDTH])
        red, green, blue = (255 * picture).round().to(torch.uint8).numpy()
        frames.append(Frame(index, Fraction(index, 24), (green, blue, red), RGB, ColourTags(0, 1, 1, 2), 0.0, False))
    return frames


def make(engine: Interpolator, halvings: int, *instants: float) -> list[Made]:
    """Frames at instants between two moving frames."""
    engine.reset()
    for _ in range(halvings):
        assert engine._portions.shrink(HEIGHT, WIDTH)
    left, right = moving(2)
    return [made for t in instants for made in engine.interpolate([Request(left, right, t)], masks=True)]


@pytest.mark.parametrize("options", [{"pruning": False}, {}, {"keep": 0.0}], ids=["dense", "pruned", "search"])
def test_seams_do_not_show(options: dict[str, Any]) -> None:
    engine = Interpolator(EngineOptions(device="cpu", precision="fp32", batch_size=1, **options))
    for whole, parts in zip(make(engine, 0, 0.75), make(engine, 1, 0.75), strict=True):
        one, other = (np.stack(made.planes).astype(float) for made in (whole, parts))
        difference = np.abs(one - other)
        assert difference.mean() < 0.01
        assert difference.max() <= 2
        # Neighbours on both sides of the seam differ as they do where there is no seam.
        seam = WIDTH // 2
        steps = [np.abs(picture[..., seam] - picture[..., seam - 1]).mean() for picture in (one, other)]
        assert steps[1] == pytest.approx(steps[0], rel=0.01)
        assert whole.masks is not None
        assert parts.masks is not None
        assert (whole.masks != parts.masks).mean() < 0.005
        assert parts.active == pytest.approx(whole.active, abs=0.005)
    assert engine.notes == ["memory ran out: each frame is made in 2 windows that overlap"]


def test_where_memory_runs_out_windows_come_before_a_coarser_look(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Interpolator(EngineOptions(device="cpu", precision="fp32", pruning=False, batch_size=1))
    original = engine.network.interpolate

    def small(frame0: Tensor, *arguments: Any) -> Interpolation:
        if frame0[0, 0].numel() > (WIDTH // 2 + MARGIN) * HEIGHT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(frame0, *arguments)

    monkeypatch.setattr(engine.network, "interpolate", small)
    (made,) = make(engine, 0, 0.5)
    assert made.planes[0].shape == (HEIGHT, WIDTH)
    assert engine.notes == ["memory ran out: each frame is made in 2 windows that overlap"]
    assert engine.factor_at(WIDTH, HEIGHT) == 1


def test_where_nothing_is_kept_windows_are_not_encoded() -> None:
    engine = Interpolator(EngineOptions(device="cpu", precision="fp32", keep=0.0, batch_size=1))
    (made,) = make(engine, 1, 0.5)
    assert made.performed_macs == network_cost(engine.network.config, WIDTH, HEIGHT).match


def test_margins_and_repeated_encodings_count_as_work() -> None:
    engine = Interpolator(EngineOptions(device="cpu", precision="fp32", pruning=False, batch_size=1))
    config = engine.network.config
    whole, window = network_cost(config, WIDTH, HEIGHT), network_cost(config, WIDTH // 2 + MARGIN, HEIGHT)
    first, second = make(engine, 1, 0.5, 0.75)
    assert first.dense_macs == 2 * whole.encode + whole.match + whole.dense
    assert second.dense_macs == whole.dense
    for made in (first, second):
        searched = whole.match if made is first else 0
        assert made.performed_macs == searched + 2 * (2 * window.encode + window.dense)
        assert made.level_dense_macs == whole.prunable
        assert made.level_performed_macs == tuple(2 * macs for macs in window.prunable)
