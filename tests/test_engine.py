"""The engine: shared encodings, padding, statistics that agree with the masks, errors that say what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.nets import SMALL, small_net
from tests.test_search import texture
from ugsp_cli import engine as engine_module
from ugsp_cli.decode import Frame
from ugsp_cli.engine import EngineOptions, Interpolator, Request, resolve_device
from ugsp_cli.errors import UgspError, UsageError
from ugsp_cli.media import ColourTags, PixelLayout
from ugsp_net import checkpoint
from ugsp_net.cost import network_cost
from ugsp_net.network import UGSP, Encoding, LevelState

LAYOUT = PixelLayout("yuv420p", 8, 1, 1, 3)
COLOUR = ColourTags(1, 1, 1, 1)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "small.safetensors"
    checkpoint.save(small_net(), path, {"note": "random"}, torch.float32)
    return str(path)


def frame(index: int, width: int = 100, height: int = 70, layout: PixelLayout = LAYOUT) -> Frame:
    """A blurred pattern that moves by two pixels a frame."""
    planes = []
    for plane in range(layout.planes):
        rows, columns = layout.plane_size(plane, width, height)
        y, x = np.mgrid[0:rows, 0:columns]
        values = 0.5 + 0.3 * np.sin((x - 2 * index) / 7) * np.cos(y / 5)
        planes.append((values * (2**layout.bits - 1)).astype(np.uint8 if layout.bits == 8 else np.uint16))
    return Frame(index, Fraction(index, 24), tuple(planes), layout, COLOUR, 0.0, False)


def stream(count: int, instants: Sequence[float], around: bool = True) -> list[Request]:
    """What a video of so many frames asks for."""
    frames = [frame(index) for index in range(count)]
    known = [None, *(frames if around else [None] * count), None]
    return [
        Request(frames[index], frames[index + 1], t, known[index], known[index + 3])
        for index in range(count - 1)
        for t in instants
    ]


def test_planes_come_back_in_the_sources_size_and_depth(weights: str) -> None:
    engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32"))
    for layout in (LAYOUT, PixelLayout("yuv444p10le", 10, 0, 0, 3), PixelLayout("gray", 8, 0, 0, 1)):
        engine.reset()
        left, right = (frame(index, 97, 65, layout) for index in (0, 1))
        (made,) = engine.interpolate([Request(left, right, 0.4)])
        assert [plane.shape for plane in made.planes] == [plane.shape for plane in left.planes]
        assert made.planes[0].dtype == left.planes[0].dtype


def test_each_frame_is_encoded_once_and_each_pair_matched_once(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32"))
    calls = {"encode": 0, "match": 0}
    for name in calls:
        original = getattr(engine._net, name)

        def count(*arguments: object, name: str = name, original: object = original) -> object:
            calls[name] += 1
            return original(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(engine._net, name, count)
    cost = network_cost(SMALL, 112, 80)
    for around in (False, True):
        engine.reset()
        calls.update(encode=0, match=0)
        made = [one for request in stream(5, (0.2, 0.4, 0.6), around) for one in engine.interpolate([request])]
        assert calls == {"encode": 5, "match": 4}
        assert sum(one.dense_macs for one in made) == 5 * cost.encode + 4 * cost.match + 12 * cost.dense
        assert sum(one.performed_macs for one in made) >= 5 * cost.encode + 4 * cost.match


def falling(index: int) -> Frame:
    """A pattern that has fallen by three pixels times the square of the frame's number."""
    way = 3 * index**2
    y, x = np.mgrid[0:128, 0:128]
    luma = 128 + 40 * np.sin(x / 7 + 2 * np.sin((y - way) / 11)) + 40 * np.cos((y - way) / 6 + np.sin(x / 9))
    grey = np.full((64, 64), 128, np.uint8)
    return Frame(index, Fraction(index, 24), (luma.round().astype(np.uint8), grey, grey), LAYOUT, COLOUR, 0.0, False)


def test_frames_before_and_after_bend_the_motion(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they are too far away to tell, or show the same picture again."""
    engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32"))
    seen: list[float] = []
    original = engine._net.coarse

    def coarse(first: Encoding, second: Encoding, found: torch.Tensor, t: torch.Tensor) -> LevelState:
        seen.append(2 * float(found[0, 1, 16:-16, 16:-16].median()))
        return original(first, second, found, t)

    monkeypatch.setattr(engine._net, "coarse", coarse)
    before, left, right, after = (falling(index) for index in range(1, 5))
    again = replace(left, index=1, time=before.time), replace(right, index=4, time=after.time)
    long_ago = replace(before, time=Fraction(-1))
    for around in ((None, None), (before, after), (long_ago, None), again):
        engine.reset()
        engine.interpolate([Request(left, right, 0.5, *around)])
    # From 12 pixels to 27; the half way in time is 18.75.
    assert seen == pytest.approx([-7.5, -6.75, -7.5, -7.5], abs=0.15)
    assert seen[0] == seen[2] == seen[3]


@pytest.mark.parametrize("size", [1, 8])
def test_where_nothing_moves_nothing_is_computed(size: int, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32", batch_size=size))
    encoded: list[int] = []
    original = engine._net.encode

    def encode(small: torch.Tensor) -> Encoding:
        encoded.append(len(small))
        return original(small)

    monkeypatch.setattr(engine._net, "encode", encode)
    first, other = frame(0), frame(3)
    # The same picture twice, but for a step of brightness in every second pixel; then one that moves.
    luma = first.planes[0] + (np.indices(first.planes[0].shape).sum(0) % 2).astype(np.uint8)
    brighter = replace(first, index=1, planes=(luma, *first.planes[1:]))
    last = replace(other, index=2)
    requests = [Request(first, brighter, 0.25), Request(first, brighter, 0.75), Request(brighter, last, 0.5)]
    made = engine.interpolate(requests, masks=True)
    for one, t in zip(made[:2], (0.25, 0.75), strict=True):
        assert one.performed_macs == 0
        assert sum(one.active) == 0
        assert one.masks is not None
        assert not one.masks.any()
        assert np.abs(one.planes[0] - (first.planes[0] + t * (luma - first.planes[0]))).max() <= 0.8  # half is rounding
        for plane, same in zip(one.planes[1:], first.planes[1:], strict=True):
            assert np.abs(plane.astype(int) - same).max() <= 1
    assert encoded == [1, 1]
    assert sum(made[2].active) > 0
    cost = network_cost(SMALL, 112, 80)
    assert sum(one.dense_macs for one in made) == 3 * cost.encode + 2 * cost.match + 3 * cost.dense
    dense = Interpolator(EngineOptions(weights, device="cpu", precision="fp32", pruning=False))
    assert all(one.performed_macs == one.dense_macs for one in dense.interpolate(requests))


@pytest.mark.parametrize(("size", "pruning"), [(1, True), (8, True), (8, False)])
def test_across_a_cut_the_nearer_frame_is_shown_as_it_is(size: int, pruning: bool, weights: str) -> None:
    """One that the scene score missed, as between two dark scenes: the search finds hardly a point again."""
    engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32", pruning=pruning, batch_size=size))
    scenes = [(255 * texture(256, 384, seed)[0, 0].numpy()).round().astype(np.uint8) for seed in (2, 3)]
    like = frame(0, 384, 256)
    shots = [np.roll(scenes[index > 1], 2 * index, axis=1) for index in range(4)]
    frames = [
        replace(like, index=index, time=Fraction(index, 24), planes=(luma, *like.planes[1:]))
        for index, luma in enumerate(shots)
    ]
    ends = [None, *frames, None]
    requests = [
        Request(frames[index], frames[index + 1], t, ends[index], ends[index + 3])
        for index in range(3)
        for t in (0.25, 0.5, 0.75)
    ]
    made = engine.interpolate(requests, masks=True)
    for one, nearer in zip(made[3:6], (1, 1, 2), strict=True):
        for plane, same in zip(one.planes, frames[nearer].planes, strict=True):
            assert np.array_equal(plane, same)
        assert sum(one.active) == sum(one.level_performed_macs) == 0
        assert one.masks is not None
        assert not one.masks.any()
    grey = [np.full_like(plane, 128) for plane in like.planes[1:]]
    tagged = replace(frames[2], index=9, planes=(shots[2], *grey), colour=ColourTags(1, 1, 1, 2))  # full range
    (converted,) = engine.interpolate([replace(requests[5], right=tagged, after=None)])
    assert np.abs(converted.planes[0] - (16 + shots[2] * (219 / 255))).max() <= 1  # as the first frame is
    assert made[3].performed_macs > 0  # to find out
    assert made[4].performed_macs == 0
    assert made[4].dense_macs == made[1].dense_macs
    for one in (*made[:3], *made[6:]):
        assert sum(one.level_performed_macs) > 0
        assert all(not np.array_equal(one.planes[0], luma) for luma in shots)


def test_batches_equal_single_frames(weights: str) -> None:
    frames = [frame(index) for index in range(4)]
    requests = [Request(frames[index], frames[index + 1], t) for index in range(3) for t in (0.25, 0.5)]
    results = []
    for size in (1, 4):
        engine = Interpolator(EngineOptions(weights, device="cpu", precision="fp32", batch_size=size))
        results.append(engine.interpolate(requests))
    for one, other in zip(*results, strict=True):
        assert one.active == pytest.approx(other.active)
        for first, second in zip(one.planes, other.planes, strict=True):
            assert np.abs(first.astype(int) - second).max() <= 1


def test_statistics_agree_with_the_masks(weights: str) -> None:
    cost = network_cost(SMALL, 112, 80)
    request = Request(frame(0), frame(1), 0.5)
    for options, keep in ((EngineOptions(weights, keep=0.5), 0.5), (EngineOptions(weights, keep=0.01), 0.0)):
        (made,) = Interpolator(options).interpolate([request])
        blocks = 7 * 5
        assert made.active == pytest.approx([round(keep * blocks) / blocks] * 3)
        for share, macs, done in zip(made.active, cost.prunable, made.level_performed_macs, strict=True):
            assert done == pytest.approx(share * macs, abs=1)
        spent = sum(made.level_performed_macs)
        never_pruned = made.dense_macs - sum(cost.prunable) - sum(cost.beside)
        # Correlations and the enlargement are done where a level is computed and around it, the latter with more taps.
        beside = made.performed_macs - never_pruned - spent
        assert beside == 0 if keep == 0 else 0 < beside <= 9 / 4 * sum(cost.beside)


def test_where_nothing_is_kept_only_the_search_is_spent(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = network_cost(SMALL, 112, 80)
    request = Request(frame(0), frame(1), 0.5)
    (expected,) = Interpolator(EngineOptions(weights, keep=0.01)).interpolate([request])  # not one block of 35
    for step in ("encode", "coarse", "interpolate"):
        monkeypatch.delattr(UGSP, step)
    (made,) = Interpolator(EngineOptions(weights, keep=0)).interpolate([request], masks=True)
    assert made.performed_macs == cost.match
    assert made.dense_macs == expected.dense_macs
    assert sum(made.active) == sum(made.level_performed_macs) == 0
    assert made.masks is not None
    assert not made.masks.any()
    for plane, other in zip(made.planes, expected.planes, strict=True):
        assert abs(plane.astype(int) - other).max() <= 1


@pytest.mark.parametrize("moves", ["never", "always", "at times"])
def test_each_frame_is_converted_once(moves: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Any] = []

    def counted(convert: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            converted.append(arguments[0])
            return convert(*arguments)

        return count

    for name in ("planes_to_rgb", "planes_to_rgb_and_look"):
        monkeypatch.setattr(engine_module, name, counted(getattr(engine_module, name)))
    shown = {"never": [0] * 17, "always": range(17), "at times": [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5]}[
        moves
    ]
    frames = [replace(frame(number), index=index, time=Fraction(index, 24)) for index, number in enumerate(shown)]
    known = [None, *frames, None]
    requests = [
        Request(frames[index], frames[index + 1], t, known[index], known[index + 3])
        for index in range(16)
        for t in (0.4, 0.8)
    ]
    engine = Interpolator(EngineOptions(weights))
    made = [one for start in range(0, 32, 4) for one in engine.interpolate(requests[start : start + 4])]
    assert len(made) == 32
    assert len(converted) == 17
    assert len(engine._sources) <= 3


def passing(index: int, width: int = 384, height: int = 256) -> Frame:
    """A disc that moves by six pixels a frame in the left part of a still picture."""
    y, x = np.mgrid[0:height, 0:width]
    ground, thing = (255 * texture(height, width, seed)[0, 0].numpy() for seed in (0, 1))
    disc = (x - 40 - 6 * index) ** 2 + (y - 100) ** 2 < 24**2
    luma = np.where(disc, thing, ground).astype(np.uint8)
    chroma = np.full((height // 2, width // 2), 128, np.uint8)
    return Frame(index, Fraction(index, 24), (luma, chroma, chroma), LAYOUT, COLOUR, 0.0, False)


def test_where_a_part_moves_the_network_sees_that_part(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [passing(index) for index in range(12)]
    requests = [Request(frames[index], frames[index + 1], 0.5) for index in (0, 1, 10)]
    sizes: list[tuple[int, int]] = []
    encode = UGSP.encode

    def seen(net: UGSP, frame: torch.Tensor) -> Encoding:
        sizes.append((frame.shape[-1], frame.shape[-2]))
        return encode(net, frame)

    monkeypatch.setattr(UGSP, "encode", seen)
    parts = Interpolator(EngineOptions(weights, batch_size=1)).interpolate(requests, masks=True)
    # The disc and 64 pixels around it, in steps of 64; what serves both pairs of a frame is encoded once.
    assert sizes == [(192, 192)] * 3 + [(256, 192)] * 2
    monkeypatch.setattr(engine_module, "unsettled", lambda agree, side: None)
    whole = Interpolator(EngineOptions(weights)).interpolate(requests, masks=True)
    assert sizes[5:] == [(384, 256)] * 5
    cost = network_cost(SMALL, 384, 256)
    for one, other, count in zip(parts, whole, (2, 1, 2), strict=True):
        for plane, expected in zip(one.planes, other.planes, strict=True):
            assert abs(plane.astype(int) - expected).max() <= 1
        assert one.active == pytest.approx(other.active, abs=0.01)
        assert one.masks is not None
        assert one.masks.shape == (3, 256, 384)
        assert one.dense_macs == other.dense_macs == cost.dense + count * cost.encode + cost.match
        assert one.performed_macs < other.performed_macs - count * cost.encode / 4


def test_a_frame_is_encoded_anew_where_its_next_pair_moves_elsewhere(weights: str) -> None:
    first, second, later = passing(0), passing(1), passing(11)
    engine = Interpolator(EngineOptions(weights, keep="auto", batch_size=1))
    engine.interpolate([Request(first, second, 0.5)])
    made = engine.interpolate([Request(second, later, t) for t in (0.25, 0.75)])
    both = network_cost(SMALL, 256, 192)
    assert made[0].performed_macs - made[1].performed_macs >= 2 * both.encode
    (alone,) = Interpolator(EngineOptions(weights)).interpolate([Request(second, later, 0.75)])
    for plane, expected in zip(made[1].planes, alone.planes, strict=True):
        assert np.array_equal(plane, expected)


def test_the_reference_backend_owns_up_to_computing_everything(weights: str) -> None:
    (made,) = Interpolator(EngineOptions(weights, backend="reference", keep=0.2)).interpolate(
        [Request(frame(0), frame(1), 0.5)]
    )
    assert made.performed_macs == made.dense_macs
    assert max(made.active) < 0.3


def test_without_pruning_everything_is_computed(weights: str) -> None:
    engine = Interpolator(EngineOptions(weights, pruning=False))
    (made,) = engine.interpolate([Request(frame(0), frame(1), 0.5)])
    assert engine.backend == "dense"
    assert made.active == (1.0, 1.0, 1.0)
    assert made.performed_macs == made.dense_macs


def test_small_pictures_work(weights: str) -> None:
    engine = Interpolator(EngineOptions(weights))
    (made,) = engine.interpolate([Request(frame(0, 6, 4), frame(1, 6, 4), 0.5)])
    assert made.planes[0].shape == (4, 6)


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_motion_is_looked_for_at_a_smaller_size(scale: float, weights: str) -> None:
    engine = Interpolator(EngineOptions(weights, flow_scale=scale, keep=0.5))
    left, right = frame(0, 300, 170), frame(1, 300, 170)
    (made,) = engine.interpolate([Request(left, right, 0.5)], masks=True)
    assert made.planes[0].shape == (170, 300)
    factor = round(1 / scale)
    width, height = (-(-side // (16 * factor)) * 16 for side in (300, 170))
    cost = network_cost(SMALL, width, height)
    assert made.dense_macs == 2 * cost.encode + cost.match + cost.dense
    assert made.masks is not None
    assert made.masks.shape == (3, 170, 300)
    assert len(np.unique(made.masks[0, : 16 * factor, : 16 * factor])) == 1  # one block


def test_large_frames_are_looked_at_smaller(weights: str) -> None:
    engine = Interpolator(EngineOptions(weights))
    sizes = {(1920, 1080): 1, (2560, 1440): 1, (3840, 2160): 2, (4096, 2160): 2, (2160, 3840): 2, (7680, 4320): 4}
    assert {size: engine.factor_at(*size) for size in sizes} == sizes
    assert Interpolator(EngineOptions(weights, flow_scale="0.5")).factor_at(64, 64) == 2


class Small:
    """A network on a device with room for so many pixels at once."""

    def __init__(self, engine: Interpolator, pixels: int, error: Callable[[], Exception]) -> None:
        self.original = engine._net.interpolate
        self.pixels = pixels
        self.error = error

    def __call__(self, frame0: torch.Tensor, *arguments: object) -> object:
        if frame0[:, 0].numel() > self.pixels:
            raise self.error()  # a new one: a kept one would keep the frames of its traceback
        return self.original(frame0, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("DefaultCPUAllocator: not enough memory: ..."),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: ... Error code 12"),
        lambda: RuntimeError("could not create a primitive"),
        MemoryError,
    ],
)
def test_where_memory_runs_out_less_is_done_at_once(
    error: Callable[[], Exception], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [frame(index, 128, 64) for index in range(5)]
    requests = [Request(frames[index], frames[index + 1], 0.5) for index in range(4)]
    engine = Interpolator(EngineOptions(weights, precision="fp32", batch_size=4))
    engine._crew = None  # as on a card: a batch is one launch
    expected = engine.interpolate(requests)
    assert engine.notes == []
    for room, batch, factor in ((2, 2, 1), (1, 1, 1), (0.3, 1, 2), (0.1, 1, 4)):
        engine.reset()
        with monkeypatch.context() as patch:
            patch.setattr(engine._net, "interpolate", Small(engine, int(room * 128 * 64), error))
            made = engine.interpolate(requests)
        assert len(made) == 4
        assert (engine.batch_size, engine.factor_at(128, 64)) == (batch, factor)
        assert engine.notes[0] == f"memory ran out: frames made at once: {batch}"
        coarser = [f"memory ran out: motion is looked for at {1 / factor:g} of the size (--flow-scale)"]
        assert engine.notes[1:] == (coarser if factor > 1 else [])
        for one, other in zip(made, expected, strict=True):
            difference = np.abs(one.planes[0].astype(int) - other.planes[0])
            assert difference.max() <= (1 if factor == 1 else 255)
    engine.reset()
    monkeypatch.setattr(engine._net, "interpolate", Small(engine, 0, error))
    with pytest.raises(UgspError, match=f"not enough memory on {engine.device} for frames of 128x64"):
        engine.interpolate(requests)


def test_other_errors_are_not_taken_for_a_lack_of_memory(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Interpolator(EngineOptions(weights))
    monkeypatch.setattr(engine._net, "interpolate", Small(engine, 0, lambda: RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        engine.interpolate([Request(frame(0), frame(1), 0.5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions("no-such-weights"), "no weights called 'no-such-weights'"),
        (EngineOptions(device="tpu"), "no device called 'tpu'"),
        (EngineOptions(device="cuda:77"), "cuda:77 is not there"),
        (EngineOptions(device="cpu", precision="fp16"), "fp16 does not run on the CPU"),
        (EngineOptions(precision="int3"), "no precision called 'int3'"),
        (EngineOptions(backend="magic"), "no backend called 'magic'"),
        (EngineOptions(keep=2.0), "--keep 2.0"),
    ],
)
def test_errors_name_what_is_wrong(options: EngineOptions, message: str, weights: str) -> None:
    if options.weights is None:
        options = EngineOptions(**{**vars(options), "weights": weights})
    with pytest.raises(UsageError, match=message) as caught:
        Interpolator(options)
    assert caught.value.hint


def test_auto_precision_is_bf16_only_where_a_matrix_unit_multiplies_it(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(engine_module, "has_matrix_unit", lambda unit=unit: unit)
        assert Interpolator(EngineOptions(weights, device="cpu")).precision == expected


def test_auto_device_is_there() -> None:
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_checkpoint_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = small_net()
    checkpoint.save(net, path, {"samples": 5}, torch.float32)
    loaded = checkpoint.load(path)
    assert loaded.net.config == SMALL
    assert loaded.provenance == {"samples": 5}
    for name, value in net.state_dict().items():
        assert torch.equal(value, loaded.net.state_dict()[name])
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    (tmp_path / "junk.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(checkpoint.WeightsError, match="not a readable safetensors file"):
        checkpoint.load(tmp_path / "junk.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(checkpoint.WeightsError, match="was not written by ugsp"):
        checkpoint.load(tmp_path / "other.safetensors")
    config = json.dumps(SMALL.to_dict())
    for header in ({"config": "[]"}, {"config": config}, {"config": config, "provenance": "no JSON"}):
        tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
        if "provenance" not in header:
            tensors = {"a": torch.zeros(1)}
        save_file(tensors, tmp_path / "odd.safetensors", metadata=header)
        with pytest.raises(checkpoint.WeightsError, match="does not fit") as caught:
            checkpoint.load(tmp_path / "odd.safetensors")
        assert "\n" not in str(caught.value)
