"""Training data: folders of videos and pictures, synthetic motion, batches made on the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests import datasets
from tests.clips import Clip, make_clip
from tests.nets import smooth_frames
from ugsp_cli.pictures import encode_png
from ugsp_net.training import synthetic
from ugsp_net.training.clips import ClipBank, Shot, open_bank
from ugsp_net.training.data import Batch, Batches, BatchPlan
from ugsp_net.training.device import DeviceBatches, crop_matrices, gather
from ugsp_net.warp import backward_warp

CPU = torch.device("cpu")
PLAN = BatchPlan(size=64, context=0, batch=8, longest_span=4, largest_shift=0.125, teacher=False)


# Folders of videos and pictures


def found(folder: Path, tmp_path: Path) -> dict[str, NDArray[np.uint8]]:
    """The frames of every clip of one shot."""
    bank = open_bank(folder, tmp_path / "cache")
    assert len({shot.clip for shot in bank.shots}) == len(bank.shots)
    return {shot.clip: bank.frames(shot) for shot in bank.shots}


def test_pictures_are_taken_in_natural_order_beside_videos(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    pictures = [datasets.put(folder / "walk" / "left" / f"frame{number}.png", number) for number in range(1, 13)]
    (folder / "walk" / "left" / "notes.txt").write_text("not a picture")
    datasets.put(folder / "walk" / "left" / ".frame3.png", 99)
    datasets.put(folder / "walk" / "right" / "1.png", 1)  # two pictures are no clip
    datasets.put(folder / "walk" / "right" / "2.png", 2)
    make_clip(folder / "a.mp4", Clip(frames=6))
    clips = found(folder, tmp_path)
    assert list(clips) == ["a.mp4", "walk/left"]
    assert np.array_equal(clips["walk/left"], pictures)
    bank = open_bank(folder, tmp_path / "cache")
    assert [shot.rate for shot in bank.shots] == [24.0, 25.0]
    assert len(open_bank(folder, tmp_path / "cache", limit=1).shots) == 1


@pytest.mark.parametrize("codec", ["mjpeg", "bmp"])
def test_other_kinds_of_pictures(codec: str, tmp_path: Path) -> None:
    import av

    shown = []
    for number in range(3):
        context = av.CodecContext.create(codec, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height = datasets.SIZE
        context.pix_fmt, context.time_base = {"mjpeg": "yuvj444p", "bmp": "bgr24"}[codec], datasets.HALF
        context.options = {"qmin": "1", "qmax": "1"}
        shown.append(datasets.picture(number))
        frame = av.VideoFrame.from_ndarray(shown[-1], format="rgb24").reformat(format=context.pix_fmt)
        path = tmp_path / "data" / f"{number}.{'jpg' if codec == 'mjpeg' else codec}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))
    clip = found(tmp_path / "data", tmp_path)["data"]
    assert np.abs(clip.astype(int) - np.stack(shown)).mean() < 2


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    for number in range(3):
        datasets.put(tmp_path / "data" / "a" / f"{number}.png", number, (120, 80))
    bank = open_bank(tmp_path / "data", tmp_path / "cache", max_lines=40)
    assert bank.frames(bank.shots[0]).shape == (3, 40, 60, 3)


def test_cuts_and_repeats_in_folders_of_pictures(tmp_path: Path) -> None:
    numbers = [0, 1, 2, 2, 3, 4, 5, 1000, 1001, 1002, 1003]
    for place, number in enumerate(numbers):
        shown = datasets.picture(number) // 3 + (160 if number >= 1000 else 0)
        path = tmp_path / "data" / "long" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(shown.astype(np.uint8)))
        if 5 <= place < 10:  # five pictures with a cut, which is not looked for in so few
            (tmp_path / "data" / "short").mkdir(exist_ok=True)
            (tmp_path / "data" / "short" / path.name).write_bytes(path.read_bytes())
        if 2 <= place < 5:  # a triplet that repeats a picture is left with two
            (tmp_path / "data" / "stuck").mkdir(exist_ok=True)
            (tmp_path / "data" / "stuck" / path.name).write_bytes(path.read_bytes())
    shots = open_bank(tmp_path / "data", tmp_path / "cache").shots
    assert [(shot.clip, shot.frames) for shot in shots] == [("long", 6), ("long", 4), ("short", 5)]
    for name in ("long", "short"):
        for path in (tmp_path / "data" / name).iterdir():
            path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no clips in .* three frames in a row that differ"):
        open_bank(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize(
    ("build", "clips"),
    [
        (datasets.ucf101, {"1": 3, "11": 3}),
        (datasets.ucf101_quintuplets, {"0": 3}),
        (datasets.x4k, {"Type1/TEST01": 33, "Type2/TEST01": 33}),
        (datasets.triplets, {"one": 3, "two": 3}),
    ],
)
def test_published_layouts(
    build: Callable[[Path], list[datasets.Expected]], clips: dict[str, int], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    samples = build(folder)
    shown = found(folder, tmp_path)
    assert {name: len(frames) for name, frames in shown.items()} == clips
    for sample in samples:
        name = f"{sample.split}/TEST01" if sample.split else sample.name
        frames = shown[name]
        at = [int(np.flatnonzero((frames == wanted).all((1, 2, 3)))[0]) for wanted in (sample.left, sample.truth)]
        assert at == sorted(at)
        if len(frames) == 3:
            assert np.array_equal(frames, [sample.left, sample.truth, sample.right])


def test_middlebury_and_snufilm_are_folders_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(7, 15):
        datasets.put(folder / "other-data" / "Urban" / f"frame{number:02d}.png", number)
        datasets.put(folder / "GOPRO_test" / "GOPR0384" / f"{number:06d}.png", number)
    datasets.put(folder / "other-gt-interp" / "Urban" / "frame10i11.png", 10.5)
    clips = found(folder, tmp_path)
    assert {name: len(frames) for name, frames in clips.items()} == {"GOPRO_test/GOPR0384": 8, "other-data/Urban": 8}


def test_of_vimeo90k_only_the_training_split_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "vimeo_triplet"
    folder.mkdir(parents=True)
    datasets.vimeo90k(folder)  # two sequences, and a list of both as a test split
    with pytest.raises(ValueError, match="is a test split"):
        open_bank(tmp_path / "data", tmp_path / "cache")
    for number in range(3):
        datasets.put(folder / "sequences" / "00007" / "0001" / f"im{number}.png", number)
        datasets.put(folder / "elsewhere" / f"im{number}.png", number)
    (folder / "tri_trainlist.txt").write_text("00007/0001\n\n")
    assert list(found(tmp_path / "data", tmp_path)) == ["vimeo_triplet/sequences/00007/0001"]
    assert list(found(folder, tmp_path)) == ["sequences/00007/0001"]
    (folder / "tri_trainlist.txt").write_text("".join(f"00007/{number:04d}\n" for number in range(1, 7)))
    with pytest.raises(FileNotFoundError, match="00007/0002, 00007/0003, 00007/0004 and 2 more"):
        open_bank(folder, tmp_path / "cache")


def test_what_is_wrong_with_pictures_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no clips in .* folder of videos \(.*\.mp4.* pictures \(.*\.png"):
        open_bank(folder, tmp_path / "cache")
    for number in range(3):
        datasets.put(folder / "a" / f"{number}.png", number, (40, 24 if number < 2 else 26))
    with pytest.raises(ValueError, match=r"2\.png is 40x26, but 0\.png is 40x24"):
        open_bank(folder, tmp_path / "cache")
    (folder / "a" / "2.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded"):
        open_bank(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_bank_is_made_anew_where_a_part_is_missing(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips" / "a.mp4", Clip(4, size=(96, 80)))
    bank = open_bank(tmp_path / "clips", tmp_path)
    whole = bank.path.read_bytes()
    bank.path.write_bytes(whole[:-1])
    assert open_bank(tmp_path / "clips", tmp_path).path.read_bytes() == whole
    bank.path.unlink()
    assert open_bank(tmp_path / "clips", tmp_path).path.read_bytes() == whole


def test_a_bank_is_made_anew_when_a_picture_changes(tmp_path: Path) -> None:
    for number in range(3):
        datasets.put(tmp_path / "data" / "a" / f"{number}.png", number)
    first = open_bank(tmp_path / "data", tmp_path / "cache")
    assert open_bank(tmp_path / "data", tmp_path / "cache").path == first.path
    os.utime(tmp_path / "data" / "a" / "1.png", ns=(1, 1))
    assert open_bank(tmp_path / "data", tmp_path / "cache").path != first.path


# Synthetic motion


def bending(batch: int, layers: int, largest: float = 40.0) -> synthetic.Motion:
    """A motion of which some layers bend."""
    for seed in range(9):
        motion = synthetic.random_motion(batch, layers, 192, largest, torch.Generator().manual_seed(seed))
        if motion.waves is not None and 1 < len(motion.waves.layers) < batch * layers:
            return motion
    raise AssertionError("nothing bends")


def test_bent_layers_go_there_and_back() -> None:
    motion = bending(4, 3)
    assert motion.waves is not None
    assert float(motion.waves.height.abs().max()) > 1
    points, time = torch.rand(4, 3, 9, 7, 2) * 192, torch.tensor([0.0, 0.3, 0.9, 1.0])
    there = motion.place(time, points)
    assert float((motion.locate(time, there) - points).abs().max()) < 1e-3
    assert float((motion.place(time, motion.locate(time, points)) - points).abs().max()) < 1e-3
    assert torch.equal(there[0], points[0])
    straight = replace(motion, waves=None).place(time, points)
    moved = (straight - there).abs().amax((2, 3, 4)).flatten() > 1e-3
    assert set(moved.nonzero()[:, 0].tolist()) <= set(motion.waves.layers.tolist())
    assert moved.any()


def test_flow_of_bent_layers_is_exact() -> None:
    """The flow is where the layer's points lie, and fetches the frame at the instant."""
    motion, t = bending(6, 1, 10.0), torch.linspace(0.2, 0.9, 6)
    textures = smooth_frames(6, 192, 192)[:, None]
    frames, flow = synthetic.render(textures, torch.ones(6, 1, 1, 192, 192), motion, t, 128)
    y, x = torch.meshgrid(torch.arange(32.0, 160), torch.arange(32.0, 160), indexing="ij")
    pixels = torch.stack((x, y), -1).expand(6, 1, 128, 128, 2)
    points = motion.locate(t, pixels)
    wanted = [motion.place(time, points) - pixels for time in (torch.zeros(6), torch.ones(6))]
    torch.testing.assert_close(flow, torch.cat(wanted, -1)[:, 0].permute(0, 3, 1, 2), atol=1e-3, rtol=0)
    for index, flows in ((0, flow[:, :2]), (2, flow[:, 2:])):
        difference = backward_warp(frames[:, index], flows) - frames[:, 1]
        assert difference[..., 24:-24, 24:-24].abs().max() < 0.04


def test_displacements_are_small_and_large() -> None:
    motion = synthetic.random_motion(500, 3, 192, 40.0, torch.Generator().manual_seed(0))
    length = motion.shift.norm(dim=-1)
    still = (length == 0).float().mean()
    assert 0.12 < still < 0.22
    assert ((length > 0) & (length < 1)).float().mean() > 0.08
    assert (length > 20).float().mean() > 0.2
    assert length.max() < 40
    assert motion.waves is not None
    assert 0.22 < len(motion.waves.layers) / 1500 < 0.34
    assert motion.waves.height.abs().max() <= 10


def test_overlays_stay_while_the_others_move() -> None:
    generator, overlaid = torch.Generator().manual_seed(0), torch.tensor([True, False, True, True])
    motion = synthetic.random_motion(4, 3, 192, 40.0, generator, overlaid)
    opacity = synthetic.random_opacity(4, 3, 192, generator, overlaid)
    moving = motion.shift.norm(dim=-1) > 0
    assert moving[overlaid].tolist() == [[True, True, False]] * 3
    assert not motion.turn[overlaid, -1].any()
    assert not motion.zoom[overlaid, -1].any()
    bent = [] if motion.waves is None else motion.waves.layers.tolist()
    assert not {2, 8, 11} & set(bent)
    top = opacity[overlaid, -1, 0, 32:-32, 32:-32] == 1
    assert all(0.001 < float(share) < 0.5 for share in top.float().mean((1, 2)))
    frames, flow = synthetic.render(torch.rand(4, 3, 3, 192, 192), opacity, motion, torch.full((4,), 0.4), 128)
    for picture, shape in zip((0, 2, 3), top, strict=True):
        shown = frames[picture][..., shape]
        assert (shown - shown[:1]).abs().max() < 1e-3
        assert flow[picture][:, shape].abs().max() == 0


def test_brightness_changes_and_the_flow_does_not() -> None:
    motion = bending(2, 2)
    textures, t = torch.rand(2, 2, 3, 192, 192), torch.tensor([0.5, 0.25])
    opacity = synthetic.random_opacity(2, 2, 192, torch.Generator().manual_seed(2))
    plain, flow = synthetic.render(textures, opacity, motion, t, 128)
    # Picture 0 changes as a whole, picture 1 in its upper layer.
    light = synthetic.Light(torch.tensor([[0.2, 0.2], [0.0, -0.4]]), torch.tensor([[0.1, 0.1], [0.0, 0.0]]))
    lit, same = synthetic.render(textures, opacity, motion, t, 128, light)
    assert torch.equal(flow, same)
    assert torch.equal(lit[:, 0], plain[:, 0])
    for number, time in ((1, 0.5), (2, 1.0)):
        wanted = ((1 + 0.2 * time) * plain[0, number] + 0.1 * time).clamp(0, 1)
        torch.testing.assert_close(lit[0, number], wanted, atol=1e-5, rtol=0)
    assert lit[0].max() == 1
    change = lit[1] - plain[1]
    assert float(change.max()) < 1e-5
    unchanged = (change.abs() < 1e-6).float().mean((1, 2, 3))
    assert bool((unchanged[1:] > 0.02).all())
    assert bool((unchanged[1:] < 0.98).all())


def test_how_often_brightness_changes() -> None:
    light = synthetic.random_light(4000, 3, torch.Generator().manual_seed(0))
    lit = (light.gain != 0).sum(1)
    assert 0.12 < (lit > 0).float().mean() < 0.18
    assert 0.05 < (lit == 3).float().mean() < 0.10
    assert set(lit.tolist()) == {0, 1, 3}


def test_scenes_follow_the_generator_and_run_both_ways() -> None:
    def scene(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        textures = smooth_frames(8, 192, 192)[:, None]
        return synthetic.random_scene(textures, 128, 10.0, torch.Generator().manual_seed(seed))

    frames, t, flow = scene(0)
    assert frames.dtype == torch.uint8
    assert flow.dtype == torch.float16
    assert all(torch.equal(one, other) for one, other in zip((frames, t, flow), scene(0), strict=True))
    assert not torch.equal(frames, scene(1)[0])
    texture = (smooth_frames(8, 192, 192)[..., 32:-32, 32:-32] * 255).round().to(torch.uint8)
    first, last = ((frames[:, at] == texture).flatten(1).all(1) for at in (0, 2))
    assert first.any()
    assert last.any()
    assert bool((first | last).all())
    for at, flows in ((0, flow[:, :2]), (2, flow[:, 2:])):
        difference = backward_warp(frames[:, at].float(), flows.float()) - frames[:, 1]
        # Most pictures keep their brightness.
        assert int((difference[..., 32:-32, 32:-32].abs().amax((1, 2, 3)) < 10).sum()) >= 5


# Batches made on the device


def make_bank(path: Path, shots: list[NDArray[np.uint8]]) -> ClipBank:
    """A bank of these shots, [frames, height, width, 3] each."""
    offsets = np.cumsum([0, *(frames.size for frames in shots)])
    path.write_bytes(b"".join(frames.tobytes() for frames in shots))
    places = []
    for number, (frames, offset) in enumerate(zip(shots, offsets, strict=False)):
        count, height, width = frames.shape[:3]
        places.append(Shot(f"{number}", int(offset), count, height, width, 24.0))
    return ClipBank(path, places)


@pytest.fixture
def bank(tmp_path: Path) -> ClipBank:
    """Two shots of a smooth texture that drifts, of different sizes."""
    shots = []
    for number, (height, width) in enumerate(((96, 128), (130, 110))):
        texture = smooth_frames(1, 180, 200, seed=number)[0].permute(1, 2, 0).mul(255).to(torch.uint8).numpy()
        shots.append(np.stack([texture[i : i + height, 2 * i : 2 * i + width] for i in range(12)]))
    return make_bank(tmp_path / "bank.rgb", shots)


def taken(bank: ClipBank, shot: int, frame: int, matrices: NDArray[np.float32], size: int) -> Tensor:
    """One crop for each matrix."""
    flat = torch.from_numpy(np.fromfile(bank.path, np.uint8))
    place, many = bank.shots[shot], len(matrices)
    offset = place.offset + frame * place.height * place.width * 3
    offsets, heights, widths = (torch.full((many,), value) for value in (offset, place.height, place.width))
    return gather(flat, offsets, heights, widths, torch.from_numpy(matrices), size)


def source(bank: ClipBank, shot: int, frame: int) -> Tensor:
    """[3, H, W] as floats."""
    return torch.from_numpy(bank.frames(bank.shots[shot])[frame].copy()).permute(2, 0, 1).float()


def test_crops_are_the_banks_pixels(bank: ClipBank) -> None:
    corners, sides = np.array([[0, 7, 46], [0, 30, 66]]), np.array([64, 64, 64])
    flips, transposed = np.zeros((2, 3), bool), np.zeros(3, bool)
    crops = taken(bank, 1, 5, crop_matrices(corners, sides, 64, flips, transposed), 64)
    whole = source(bank, 1, 5)
    for crop, x, y in zip(crops, *corners, strict=True):
        assert torch.equal(crop, whole[:, y : y + 64, x : x + 64])


@pytest.mark.parametrize("side", [64, 40, 90])
@pytest.mark.parametrize(
    ("across", "down", "transposed"), [(True, False, False), (False, True, True), (True, True, True)]
)
def test_crops_are_flipped_turned_and_scaled_as_torch_does(
    side: int, across: bool, down: bool, transposed: bool, bank: ClipBank
) -> None:
    matrices = crop_matrices(
        np.array([[11], [3]]), np.array([side]), 64, np.array([[across], [down]]), np.array([transposed])
    )
    crop = taken(bank, 0, 3, matrices, 64)[0]
    cut = source(bank, 0, 3)[None, :, 3 : 3 + side, 11 : 11 + side]
    wanted = F.interpolate(cut, (64, 64), mode="bilinear", antialias=side > 64)[0]
    wanted = wanted.flip(2) if across else wanted
    wanted = wanted.flip(1) if down else wanted
    wanted = wanted.transpose(1, 2) if transposed else wanted
    if side == 64:
        assert torch.equal(crop, wanted)
    # At the edges torch knows less: it sees the cut alone.
    assert (crop - wanted)[:, 2:-2, 2:-2].abs().max() < 2


def test_what_shrinks_is_smoothed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.uint8)
    bank = make_bank(tmp_path / "bank.rgb", [noise])
    upright = np.zeros((2, 1), bool), np.zeros(1, bool)
    crop = taken(bank, 0, 0, crop_matrices(np.zeros((2, 1), np.int64), np.array([102]), 64, *upright), 64)[0]
    wanted = F.interpolate(source(bank, 0, 0)[None, :, :102, :102], (64, 64), mode="bilinear", antialias=True)[0]
    assert crop.std() < 1.15 * wanted.std()


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in Batch.__dataclass_fields__)


def test_a_device_batch_depends_on_its_number_alone(bank: ClipBank) -> None:
    first, second = (DeviceBatches(bank, PLAN, 7, 100, CPU) for _ in range(2))
    assert same(first[13], second[13])
    assert same(first[13], second[13])
    assert not same(first[13], first[14])
    assert len(first) == 100


def test_a_device_batch_is_one_of_the_others_kind(bank: ClipBank) -> None:
    made, usual = DeviceBatches(bank, PLAN, 7, 100, CPU)[0], Batches(bank, PLAN, 7, 100)[0]
    for name in Batch.__dataclass_fields__:
        one, other = getattr(made, name), getattr(usual, name)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert 0 < int(made.real.sum()) < 8
    assert torch.equal(made.trust[:, 0, 0, 0] == 1, ~made.real)
    assert not made.flow[made.real].any()
    assert made.flow[~made.real].abs().max() > 1
    assert bool(((made.t > 0) & (made.t < 1)).all())
    every = DeviceBatches(bank, replace(PLAN, synthetic_first=1.0, synthetic_last=1.0, middle_only=True), 0, 9, CPU)
    assert not every[3].real.any()
    assert every[3].t.unique().tolist() == [0.5]
    with pytest.raises(ValueError, match="64x64"):
        DeviceBatches(ClipBank(bank.path, []), PLAN, 0, 9, CPU)


def test_crops_lie_in_their_windows(bank: ClipBank) -> None:
    """The search sees the whole window, and what it finds is cut where the frames are."""
    plan = replace(PLAN, context=32)
    for batch in (DeviceBatches(bank, plan, 7, 100, CPU)[0], Batches(bank, plan, 7, 100)[0]):
        assert batch.frames.shape[-2:] == batch.flow.shape[-2:] == (96, 96)
        assert not bool((batch.corner % 2).any())
        assert 0 <= int(batch.corner.min()) < int(batch.corner.max()) <= 32
        crops = batch.crops(batch.frames, 64)
        assert crops.shape == (8, 3, 3, 64, 64)
        y, x = batch.corner[5].tolist()
        assert torch.equal(crops[5], batch.frames[5, ..., y : y + 64, x : x + 64])
        halves = batch.crops(batch.flow[..., ::2, ::2], 64, 2)
        assert torch.equal(halves, batch.crops(batch.flow, 64)[..., ::2, ::2])


REAL = replace(PLAN, synthetic_first=0.0, synthetic_last=0.0, batch=16)


def test_instants_are_mirrored_with_the_frames(tmp_path: Path) -> None:
    """Frame n is grey 6 n: the middle frame's grey says where it lies between the outer ones."""
    grey = np.broadcast_to(6 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 80, 90, 3))
    bank = make_bank(tmp_path / "bank.rgb", [grey])
    for dataset in (DeviceBatches(bank, REAL, 0, 100, CPU), Batches(bank, replace(REAL, teacher=False), 0, 100)):
        for number in range(3):
            batch = dataset[number]
            outer0, middle, outer1 = batch.frames[:, :, 0, 0, 0].float().unbind(1)
            torch.testing.assert_close((middle - outer0) / (outer1 - outer0), batch.t)
            assert 0 < int((outer1 < outer0).sum()) < 16
            # The same of the frames before and after; where the shot has none, nobody is told a time.
            before, after = batch.around[:, :, 0, 0, 0].float().unbind(1)
            gaps = torch.stack((outer0 - before, after - outer1), dim=1) / (outer1 - outer0)[:, None]
            assert torch.equal(batch.intervals > 0, gaps >= 0.5)
            torch.testing.assert_close(batch.intervals, torch.where(gaps < 0.5, 0.0, gaps))
            assert gaps.max() <= 1
            assert 0 < int((batch.intervals == 0).sum()) < 32
    only = DeviceBatches(bank, replace(REAL, middle_only=True), 0, 100, CPU)
    assert only[0].t.unique().tolist() == [0.5]


def test_crops_that_move_are_preferred(tmp_path: Path) -> None:
    """A dark shot that stands still, and a bright one whose frames differ."""
    still = np.full((12, 80, 90, 3), 40, np.uint8)
    moving = np.broadcast_to(100 + 6 * np.arange(12, dtype=np.uint8)[:, None, None, None], still.shape)
    bank = make_bank(tmp_path / "bank.rgb", [still, moving])

    def share(still_share: float) -> float:
        dataset = DeviceBatches(bank, replace(REAL, still_share=still_share), 0, 100, CPU)
        return float(
            torch.cat([dataset[number].frames[:, 0].flatten(1).amin(1) > 90 for number in range(4)]).float().mean()
        )

    assert share(0.0) > 0.95
    assert 0.35 < share(1.0) < 0.65


@pytest.mark.gpu
def test_batches_on_a_graphics_card(bank: ClipBank) -> None:
    device = torch.device("cuda")
    first, second = (DeviceBatches(bank, PLAN, 7, 100, device) for _ in range(2))
    assert same(first[13], second[13])
    on_host = {"corner"}  # plain numbers to cut by
    assert all(getattr(first[13], name).device.type == "cuda" for name in {*Batch.__dataclass_fields__} - on_host)
    # Real samples are drawn with numpy, and are the processor's but for rounding.
    one, other = first[13], DeviceBatches(bank, PLAN, 7, 100, CPU)[13]
    assert torch.equal(one.real.cpu(), other.real)
    assert torch.equal(one.t[one.real].cpu(), other.t[other.real])
    assert (one.frames[one.real].cpu().int() - other.frames[other.real].int()).abs().max() <= 1
