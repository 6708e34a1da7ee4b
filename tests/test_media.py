"""What `probe` says of clips that are known, and how it refuses what is no video."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.clips import Clip, Sound, make_clip, make_sound
from ugsp_cli.errors import ExitCode, InputError
from ugsp_cli.media import codec_threads, probe
from ugsp_cli.pixels import ColourTags, PixelLayout, layout_of


def test_everything_a_file_can_hold(tmp_path: Path) -> None:
    clip = Clip(
        sounds=[Sound(), Sound("flac", language="fra")],
        subtitles=[(Fraction(0), Fraction(1, 4), "one"), (Fraction(1, 4), Fraction(1, 2), "two")],
        chapters=[(0, 200, "first"), (200, 500, "second")],
        attachment=b"font",
        metadata={"title": "All of it"},
    )
    info = probe(make_clip(tmp_path / "all.mkv", clip))
    assert (info.container, info.codec, info.width, info.height) == ("matroska", "h264", 96, 64)
    assert info.layout == PixelLayout("yuv420p", 8, 1, 1, 3)
    assert info.colour == ColourTags(1, 1, 1, 1)
    assert info.rate == info.constant_rate == 24
    assert info.start == 0
    assert info.chapters == 2
    assert info.metadata["title"] == "All of it"
    assert info.interlaced is False
    assert [(stream.kind, stream.codec) for stream in info.streams] == [
        ("video", "h264"),
        ("audio", "aac"),
        ("audio", "flac"),
        ("subtitle", "subrip"),
        ("attachment", ""),
    ]
    assert [stream.language for stream in info.streams[1:4]] == ["eng", "fra", "deu"]
    assert (info.streams[1].sample_rate, info.streams[1].channels) == (48000, 2)
    assert info.streams[4].title == "font.ttf"


def test_frames_and_duration(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "plain.mp4", Clip(frames=12)))
    assert info.duration == Fraction(1, 2)
    assert info.frames_estimate == 12
    assert info.sample_aspect_ratio in (None, 1)
    assert info.hdr is None
    assert info.display_matrix is None


def test_codecs_of_large_frames_get_few_threads(tmp_path: Path) -> None:
    """Each holds frames of its own; those of small ones may have all cores."""
    info = probe(make_clip(tmp_path / "plain.mp4", Clip(frames=2)))
    assert codec_threads(info) is None
    assert codec_threads(replace(info, width=3840, height=2160)) is None
    most = codec_threads(replace(info, width=7680, height=4320))
    assert most is not None
    assert 1 <= most <= 4


def test_rotation_and_aspect(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "turned.mp4", Clip(rotation=90, sample_aspect_ratio=Fraction(4, 3))))
    assert info.rotation == 90
    assert info.display_matrix is not None
    assert len(info.display_matrix) == 9
    assert (info.width, info.height) == (96, 64)
    assert info.sample_aspect_ratio == Fraction(4, 3)


def test_variable_rate_has_no_constant_rate(tmp_path: Path) -> None:
    times = [Fraction(n, 90000) for n in (0, 3000, 9000, 10000, 18000, 25000)]
    info = probe(make_clip(tmp_path / "vfr.mp4", Clip(times=times, time_base=Fraction(1, 90000))))
    assert info.constant_rate is None


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "cover.mp4", Clip(cover=True)))
    assert info.codec == "h264"
    assert [stream.disposition for stream in info.streams if stream.codec == "png"] == [("attached_pic",)]


def test_start_offset(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "late.mp4", Clip(start=Fraction(1, 24), sounds=[Sound()])))
    assert info.start == Fraction(1, 24)


def test_names_that_look_like_protocols(tmp_path: Path) -> None:
    assert probe(make_clip(tmp_path / "plain.mp4").rename(tmp_path / "http:50% of %d.mp4")).frames_estimate == 12


@pytest.mark.parametrize(
    ("pix_fmt", "layout"),
    [
        ("yuv420p", "yuv420p"),
        ("yuvj420p", "yuv420p"),
        ("nv12", "yuv420p"),
        ("yuva420p", "yuv420p"),
        ("yuyv422", "yuv422p"),
        ("yuv440p", "yuv444p"),
        ("yuv411p", "yuv422p"),
        ("yuv410p", "yuv420p"),
        ("p010le", "yuv420p10le"),
        ("yuv422p10be", "yuv422p10le"),
        ("yuv420p9le", "yuv420p10le"),
        ("yuv444p12le", "yuv444p12le"),
        ("rgb24", "yuv444p"),
        ("pal8", "yuv444p"),
        ("gbrp10le", "yuv444p10le"),
        ("gray", "gray"),
        ("ya8", "gray"),
        ("monob", "gray"),
        ("gray16le", "gray12le"),
    ],
)
def test_layouts(pix_fmt: str, layout: str) -> None:
    assert layout_of(pix_fmt).name == layout


def test_a_layout_knows_its_planes() -> None:
    layout = layout_of("yuv420p")
    assert [layout.plane_size(plane, 97, 65) for plane in range(3)] == [(65, 97), (33, 49), (33, 49)]
    with pytest.raises(ValueError, match="cuda"):
        layout_of("cuda")


def test_refusals(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(bytes(range(256)) * 40)
    text = tmp_path / "notes.txt"
    text.write_text("not a video\n" * 100)
    sound = make_sound(tmp_path / "sound.m4a")
    refused = [tmp_path / "missing.mp4", tmp_path, empty, noise, text, sound]
    if hasattr(os, "mkfifo"):
        refused.append(tmp_path / "pipe.mkv")
        os.mkfifo(refused[-1])
    for path in refused:
        with pytest.raises(InputError) as caught:
            probe(path)
        assert caught.value.exit_code == ExitCode.USAGE
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.hint
