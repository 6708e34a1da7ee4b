"""Frames as they come out of the reader: samples, times, scores, and what damage does."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import Clip, make_clip, picture_planes
from ugsp_cli.decode import Frame, FrameReader
from ugsp_cli.errors import DecodeError, InputError


def read(path: Path) -> tuple[list[Frame], FrameReader]:
    with FrameReader(path, threads=1) as reader:
        return list(reader), reader


@pytest.mark.parametrize("size", [(96, 64), (97, 65)])
@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "gray", "gray10le"]
)
def test_samples_arrive_unchanged(tmp_path: Path, size: tuple[int, int], pix_fmt: str) -> None:
    path = make_clip(tmp_path / "clip.mkv", Clip(frames=3, size=size, codec="ffv1", pix_fmt=pix_fmt))
    frames, reader = read(path)
    assert reader.info.layout.name == pix_fmt
    assert len(frames) == 3
    for frame in frames:
        expected = picture_planes(frame.layout, *size, frame.index)
        assert len(frame.planes) == frame.layout.planes
        for plane, wanted in zip(frame.planes, expected, strict=True):
            assert plane.dtype == wanted.dtype
            assert plane.flags.c_contiguous
            np.testing.assert_array_equal(plane, wanted)


def test_alpha_is_dropped_and_colour_kept(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", Clip(frames=2, codec="ffv1", pix_fmt="yuva420p"))
    frames, reader = read(path)
    assert reader.info.pix_fmt == "yuva420p"
    expected = picture_planes(frames[1].layout, 96, 64, 1)
    for plane, wanted in zip(frames[1].planes, expected, strict=True):
        np.testing.assert_array_equal(plane, wanted)


def test_rgb_becomes_bt709(tmp_path: Path) -> None:
    path = tmp_path / "red.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=32, height=32, pix_fmt="bgr0")
        red = av.VideoFrame.from_ndarray(np.full((32, 32, 3), (255, 0, 0), np.uint8), format="rgb24")
        container.mux(stream.encode(red.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    frames, reader = read(path)
    assert reader.info.layout.name == "yuv444p"
    assert (reader.info.colour.matrix, reader.info.colour.range) == (1, 1)
    # BT.709, limited range, of pure red: Y = 16 + 219 * 0.2126, Cb = 128 - 224 * 0.1146, Cr = 128 + 224 * 0.5.
    assert [int(plane.mean().round()) for plane in frames[0].planes] == pytest.approx([63, 102, 240], abs=1)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts", "avi", "nut"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30), Fraction(24000, 1001), Fraction(60)])
def test_constant_rate_gives_exact_times(tmp_path: Path, extension: str, rate: Fraction) -> None:
    frames, reader = read(make_clip(tmp_path / f"clip.{extension}", Clip(frames=20, rate=rate)))
    assert [frame.time - frames[0].time for frame in frames] == [n / rate for n in range(20)]
    assert [frame.index for frame in frames] == list(range(20))
    assert reader.last_duration == 1 / rate
    assert (reader.corrupt, reader.dropped, reader.notes) == (0, 0, [])


def test_variable_rate_gives_the_stored_times(tmp_path: Path) -> None:
    times = [Fraction(n, 90000) for n in (0, 3000, 9000, 10000, 18000, 25000)]
    frames, reader = read(make_clip(tmp_path / "vfr.mp4", Clip(times=times, time_base=Fraction(1, 90000))))
    assert [frame.time for frame in frames] == times
    assert reader.last_duration > 0


def test_scores(tmp_path: Path) -> None:
    frames, _ = read(make_clip(tmp_path / "cut.mp4", Clip(frames=14, cut=6)))
    assert [frame.index for frame in frames if frame.scene_score >= 10] == [6]
    assert frames[0].scene_score == 0


def test_a_cut_before_the_second_frame_is_seen(tmp_path: Path) -> None:
    frames, _ = read(make_clip(tmp_path / "cut.mp4", Clip(frames=6, cut=1)))
    assert [frame.index for frame in frames if frame.scene_score >= 10] == [1]


def test_fast_motion_from_the_start_is_no_cut(tmp_path: Path) -> None:
    # Pictures 7 steps apart differ by more than the threshold, all of them by about as much.
    frames, _ = read(make_clip(tmp_path / "fast.mkv", Clip(frames=6, codec="ffv1", content=lambda n: n * 7)))
    difference = np.abs(frames[1].planes[0].astype(int) - frames[0].planes[0]).mean() * 100 / 256
    assert difference > 10
    assert all(frame.scene_score < 10 for frame in frames)


def test_without_scene_detection_nothing_is_scored(tmp_path: Path) -> None:
    with FrameReader(make_clip(tmp_path / "cut.mp4", Clip(cut=6)), scene_detection=False) as reader:
        assert all(frame.scene_score == 0 for frame in reader)


def test_duplicates(tmp_path: Path) -> None:
    frames, _ = read(make_clip(tmp_path / "twos.mkv", Clip(frames=6, codec="ffv1", content=lambda n: n // 2)))
    assert [frame.duplicate for frame in frames] == [False, True] * 3


def test_one_frame(tmp_path: Path) -> None:
    frames, reader = read(make_clip(tmp_path / "one.mp4", Clip(frames=1)))
    assert len(frames) == 1
    assert reader.last_duration == Fraction(1, 24)


def test_all_frames_of_a_long_gop_are_flushed(tmp_path: Path) -> None:
    frames, _ = read(make_clip(tmp_path / "clip.mp4", Clip(frames=31, options={"bf": "4", "refs": "4"})))
    assert len(frames) == 31


def test_times_that_do_not_increase_are_dropped(tmp_path: Path) -> None:
    # Matroska takes equal stamps; at 1 ms two frames 0.3 ms apart have the same.
    times = [Fraction(n, 10000) for n in (0, 400, 403, 800, 1200)]
    clip = Clip(times=times, time_base=Fraction(1, 10000), codec="ffv1", rate=Fraction(25))
    frames, reader = read(make_clip(tmp_path / "same.mkv", clip))
    assert reader.dropped == 1
    assert all(a.time < b.time for a, b in pairwise(frames))


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", Clip(frames=48))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames, _ = read(cut)
    assert 10 < len(frames) < 48


def test_an_mp4_that_ends_early_says_so(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", Clip(frames=48))
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w", container_options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    frames, reader = read(cut)
    assert 10 < len(frames) < 48
    assert any("ends early" in note for note in reader.notes)


def test_a_matroska_that_ends_early_says_so(tmp_path: Path) -> None:
    """Its tag tells how long the video is; the file's own duration may be that of its sound."""
    whole = make_clip(tmp_path / "whole.mkv", Clip(frames=48))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    frames, reader = read(cut)
    assert 10 < len(frames) < 48
    assert any("of 2.000 s" in note for note in reader.notes)
    late = make_clip(tmp_path / "late.mkv", Clip(frames=24, start=Fraction(5)))  # its tag says when it ends
    assert read(late)[1].notes == []
    assert read(whole)[1].notes == []


@pytest.mark.parametrize("wrong", [1, 20, 47])
def test_a_time_beyond_the_files_end_is_not_believed(tmp_path: Path, wrong: int) -> None:
    """One stamp that is an hour late made an hour of output, and all frames after it were dropped."""
    whole, path = make_clip(tmp_path / "whole.ts", Clip(frames=48, options={"bf": "0"})), tmp_path / "clip.ts"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = [packet for packet in source.demux() if packet.size]
        for number, packet in enumerate(packets):
            assert packet.pts is not None
            if number == wrong:
                packet.pts += round(3600 / packet.time_base)
            packet.stream = stream
            target.mux(packet)
    (expected, _), (frames, reader) = read(whole), read(path)
    assert reader.misplaced == 1
    assert [frame.time - frames[0].time for frame in frames] == [Fraction(n, 24) for n in range(len(expected))]


def test_interlaced_footage_is_told_of(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    _, reader = read(make_clip(tmp_path / "clip.mp4", Clip(size=(96, 96), options=options)))
    assert any("interlaced" in note for note in reader.notes)


def test_damage_in_the_middle_is_skipped(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", Clip(frames=48, options={"g": "12"}))
    content = bytearray(path.read_bytes())
    noise = random.Random(1)
    for place in range(len(content) // 4, len(content) * 3 // 4, len(content) // 12):
        content[place : place + 60] = noise.randbytes(60)
    path.write_bytes(content)
    frames, reader = read(path)
    assert len(frames) > 24
    assert reader.corrupt > 0
    assert all(a.time < b.time for a, b in pairwise(frames))


def test_a_change_of_size_is_an_error(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", Clip(frames=10, size=size)) for n, size in enumerate([(96, 64), (64, 96)])]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with FrameReader(joined) as reader, pytest.raises(DecodeError, match="96x64 to 64x96"):
        list(reader)


def test_undecodable(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mkv", Clip(frames=6, codec="ffv1", options={"slicecrc": "1"}))
    content = bytearray(path.read_bytes())
    noise = random.Random(1)
    content[1200:] = noise.randbytes(len(content) - 1200)
    path.write_bytes(content)
    with pytest.raises(InputError):
        read(path)
