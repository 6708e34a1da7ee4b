"""What the writer leaves on the disk: exact times, the other streams as they were, and nothing where it fails."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.clips import Clip, Sound, make_clip, picture_planes
from ugsp_cli import encoders
from ugsp_cli.atomic import AtomicFile
from ugsp_cli.colour import planes_to_rgb
from ugsp_cli.decode import FrameReader
from ugsp_cli.encode import EncodeOptions, FrameWriter, check_encoder
from ugsp_cli.encoders import plan_encoder
from ugsp_cli.errors import EncodeError, ExitCode, OutputError, UsageError
from ugsp_cli.media import MediaInfo, probe
from ugsp_cli.remux import lost_tags

FAST = EncodeOptions(preset="ultrafast")
LOSSLESS = EncodeOptions(codec="ffv1")


def rewrite(
    source: Path,
    output: Path,
    rate: Fraction | int = 60,
    frames: int = 30,
    options: EncodeOptions = FAST,
    copy_audio: bool = True,
) -> FrameWriter:
    """Write `frames` moving pictures at `rate`, with all else of the source."""
    info = probe(source)
    with FrameWriter(output, info, Fraction(rate), options, copy_audio=copy_audio, threads=1) as writer:
        for number in range(frames):
            planes = picture_planes(info.layout, info.width, info.height, number)
            writer.write(planes, info.start + number / Fraction(rate))
    return writer


def video_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [frame.pts * stream.time_base for frame in container.decode(stream) if frame.pts is not None]


def stream_packets(path: Path, index: int) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams[index]) if packet.size]


def sound_lead(path: Path) -> Fraction:
    """Seconds from the second sound packet (the first may be encoder delay, cut off or not) to the first frame."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.size]
    assert packets[1].pts is not None
    return video_times(path)[0] - packets[1].pts * packets[1].time_base


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("extension", ["mp4", "mov"])
@pytest.mark.parametrize("rate", [Fraction(60), Fraction(60000, 1001), Fraction(24), Fraction(25, 2), Fraction(144)])
def test_times_are_exact(tmp_path: Path, extension: str, rate: Fraction) -> None:
    output = tmp_path / f"out.{extension}"
    writer = rewrite(make_clip(tmp_path / "in.mp4"), output, rate)
    assert video_times(output) == [n / rate for n in range(30)]
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 30 / rate
    assert writer.notes == []


def test_matroska_rounds_to_milliseconds_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    writer = rewrite(make_clip(tmp_path / "in.mp4"), output)
    assert all(abs(time - Fraction(n, 60)) <= Fraction(1, 2000) for n, time in enumerate(video_times(output)))
    assert any("milliseconds" in note for note in writer.notes)
    with FrameReader(output) as reader:
        assert [frame.time for frame in reader] == [Fraction(n, 60) for n in range(30)]


@pytest.mark.parametrize("start", [Fraction(1, 24), Fraction(7, 1000), Fraction(2)])
def test_a_late_video_stays_late(tmp_path: Path, start: Fraction) -> None:
    clip = Clip(start=start, time_base=Fraction(1, 24000), sounds=[Sound(seconds=Fraction(3))])
    source = make_clip(tmp_path / "in.mp4", clip)
    output = tmp_path / "out.mp4"
    rewrite(source, output)
    assert probe(source).start == start
    assert video_times(output) == [start + Fraction(n, 60) for n in range(30)]
    assert stream_packets(source, 1) == stream_packets(output, 1)


def test_late_sound_stays_late(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(sounds=[Sound("flac", start=Fraction(1, 4))]))
    output = tmp_path / "out.mkv"
    rewrite(source, output)
    assert sound_lead(output) == sound_lead(source) < -Fraction(1, 4)


def test_a_file_that_starts_late_starts_at_zero(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(start=Fraction(10)))
    output = tmp_path / "out.mp4"
    rewrite(source, output)
    assert video_times(output) == [Fraction(n, 60) for n in range(30)]


@pytest.mark.parametrize(
    ("source", "target", "codec"),
    [
        *(("mp4", "mp4", "aac"), ("mp4", "mkv", "aac"), ("mkv", "mp4", "aac"), ("mkv", "mkv", "aac")),
        *(("mkv", "mkv", "libopus"), ("mkv", "webm", "libopus"), ("mp4", "mp4", "libopus")),
        *(("mkv", "mkv", "flac"), ("mkv", "mp4", "flac"), ("mov", "mov", "pcm_s16le")),
    ],
)
def test_sound_is_copied_packet_for_packet(tmp_path: Path, source: str, target: str, codec: str) -> None:
    first = make_clip(tmp_path / f"in.{source}", Clip(sounds=[Sound(codec)]))
    output = tmp_path / f"out.{target}"
    rewrite(first, output, options=EncodeOptions() if target == "webm" else FAST)
    packets = stream_packets(first, 1)
    assert len(packets) > 1
    if codec == "pcm_s16le":  # raw samples are regrouped, as packets mean nothing to them
        assert b"".join(stream_packets(output, 1)) == b"".join(packets)
    else:
        assert stream_packets(output, 1) == packets
    # Sound keeps its place beside the video, whatever the container makes of encoder delay.
    assert abs(sound_lead(output) - sound_lead(first)) <= Fraction(1, 1000)


def test_everything_else_is_copied(tmp_path: Path) -> None:
    clip = Clip(
        sounds=[Sound(), Sound("flac", language="fra")],
        subtitles=[(Fraction(0), Fraction(1, 4), "one"), (Fraction(1, 4), Fraction(1, 2), "two")],
        chapters=[(0, 200, "first"), (200, 500, "second")],
        attachment=b"font" * 100,
        metadata={"title": "All of it", "comment": "naïve"},
    )
    source = make_clip(tmp_path / "in.mkv", clip)
    output = tmp_path / "out.mkv"
    writer = rewrite(source, output)
    before, after = probe(source), probe(output)
    assert [(s.kind, s.codec, s.language, s.title, s.disposition) for s in before.streams] == [
        (s.kind, s.codec, s.language, s.title, s.disposition) for s in after.streams
    ]
    for index in (1, 2, 3):
        assert stream_packets(source, index) == stream_packets(output, index)
    with av.open(str(source)) as first, av.open(str(output)) as second:
        assert [(c["start"], c["end"], c["metadata"]) for c in first.chapters()] == [
            (c["start"], c["end"], c["metadata"]) for c in second.chapters()
        ]
        assert second.streams.attachments[0].data == b"font" * 100
        assert second.metadata["title"] == "All of it"
        assert second.metadata["COMMENT"] == "naïve"
    assert [note for note in writer.notes if "milliseconds" not in note] == []


def test_mp4_chapters_are_not_doubled(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(chapters=[(0, 200, "first"), (200, 500, "second")]))
    output = tmp_path / "out.mp4"
    rewrite(source, output)
    assert [s.kind for s in probe(output).streams] == [s.kind for s in probe(source).streams]
    with av.open(str(output)) as container:
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["first", "second"]


def time_coded(path: Path, time_code: str, rate: Fraction) -> Path:
    """A clip whose first frame has that time code."""
    plain = make_clip(path.with_name("plain.mp4"), Clip(rate=rate))
    with av.open(str(plain)) as first, av.open(str(path), "w") as second:
        stream = second.add_stream_from_template(first.streams.video[0], opaque=True)
        stream.metadata["timecode"] = time_code
        for packet in first.demux():
            if packet.size:
                packet.stream = stream
                second.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["mov", "mp4", "mkv"])
def test_time_codes_are_kept(tmp_path: Path, extension: str) -> None:
    source, output = time_coded(tmp_path / "in.mov", "01:00:00:00", Fraction(24)), tmp_path / f"out.{extension}"
    assert [stream.kind for stream in probe(source).streams] == ["video", "data"]
    rewrite(source, output)
    with av.open(str(output)) as container:
        tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
    assert tags["timecode"] == "01:00:00:00"


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_the_picture_around_the_samples(tmp_path: Path, extension: str) -> None:
    clip = Clip(rotation=90, sample_aspect_ratio=Fraction(4, 3), colour=(9, 9, 16, 1), cover=True)
    source = make_clip(tmp_path / "in.mp4", clip)
    output = tmp_path / f"out.{extension}"
    rewrite(source, output)
    before, after = probe(source), probe(output)
    assert after.colour == before.colour
    assert after.rotation == 90
    assert after.display_matrix == before.display_matrix
    assert after.sample_aspect_ratio == Fraction(4, 3)
    assert [s.disposition for s in after.streams if s.codec == "png"] == [
        s.disposition for s in before.streams if s.codec == "png"
    ]


def test_covers_travel_between_containers(tmp_path: Path) -> None:
    """Matroska has them as attached files, which FFmpeg shows as video streams, MP4 among its tags, MOV not at all."""
    source = make_clip(tmp_path / "in.mp4", Clip(cover=True, sounds=[Sound()]))
    picture = stream_packets(source, 2)
    for name in ("a.mkv", "b.mkv", "c.mp4"):
        writer = rewrite(source, tmp_path / name)
        source = tmp_path / name
        *_, cover = probe(source).streams
        assert (cover.codec, cover.disposition) == ("png", ("attached_pic",))
        assert stream_packets(source, cover.index) == picture
        assert [note for note in writer.notes if "milliseconds" not in note] == []
        assert len(video_times(source)) == 30
    writer = rewrite(source, tmp_path / "d.mov")
    assert [stream.kind for stream in probe(tmp_path / "d.mov").streams] == ["video", "audio"]
    assert writer.notes == ["left out, since mov does not hold it: stream 2 (video, png)"]


def tagged(path: Path, tags: dict[str, str], cover: bool = False) -> Path:
    """A clip as telephones write it, with a track that has a title."""
    plain = make_clip(path.with_name("plain.mp4"), Clip(cover=cover))
    options = {} if cover else {"movflags": "use_metadata_tags"}
    with av.open(str(plain)) as first, av.open(str(path), "w", container_options=options) as second:
        second.metadata.update(tags)
        streams = [second.add_stream_from_template(stream, opaque=True) for stream in first.streams]
        for stream, template in zip(streams, first.streams, strict=True):
            stream.disposition = template.disposition
        streams[0].metadata["title"] = "Director"
        for packet in first.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                second.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["mov", "mp4", "mkv"])
def test_tags_of_telephones_are_kept(tmp_path: Path, extension: str) -> None:
    tags = {"com.apple.quicktime.make": "Apple", "com.apple.quicktime.model": "Telephone", "title": "T"}
    source, output = tagged(tmp_path / "in.mov", tags), tmp_path / f"out.{extension}"
    writer = rewrite(source, output)
    with av.open(str(output)) as container:
        found = {name.lower(): value for name, value in container.metadata.items()}
        names = container.streams.video[0].metadata
        assert names.get("title", names.get("name")) == "Director"
    assert found.items() >= tags.items()
    assert not any("tags" in note for note in writer.notes)


def test_a_cover_that_is_dropped_takes_no_tags_along(tmp_path: Path) -> None:
    tags = {"com.android.version": "12"}
    source = make_clip(tmp_path / "in.mkv", Clip(metadata=tags))
    covered = tmp_path / "covered.mkv"
    with av.open(str(source)) as first, av.open(str(covered), "w") as second:
        second.metadata.update(tags)
        stream = second.add_stream_from_template(first.streams.video[0], opaque=True)
        second.add_attachment(
            "cover.png", "image/png", stream_packets(make_clip(tmp_path / "c.mp4", Clip(cover=True)), 1)[0]
        )
        for packet in first.demux():
            if packet.size:
                packet.stream = stream
                second.mux(packet)
    for extension, names in (("mov", {"com.android.version"}), ("mp4", set())):
        rewrite(covered, tmp_path / f"out.{extension}")
        with av.open(str(tmp_path / f"out.{extension}")) as container:
            assert names == {name.lower() for name in container.metadata if "." in name}


def test_tags_that_a_container_does_not_hold_are_noted(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(metadata={"TITLE": "T", "MOOD": "good", "artist": "A"}))
    writer = rewrite(source, tmp_path / "out.mp4")
    assert writer.notes == ["left out, since mp4 does not hold them: the tags MOOD"]
    assert lost_tags({"title": "T", "title-eng": "T", "mood-eng": "good"}, "mp4", {}) == ["mood-eng"]
    # Where Apple's names are, covers are not: the cover counts for more.
    source = tagged(tmp_path / "in.mp4", {"title": "T"}, cover=True)
    with av.open(str(source)) as container:
        assert len(container.streams) == 2
    assert rewrite(source, tmp_path / "again.mp4").notes == []
    assert len(probe(tmp_path / "again.mp4").streams) == 2


def luma(path: Path) -> np.ndarray:
    """Of the first frame, as the file has it, [height, width]."""
    with FrameReader(path) as reader:
        return next(iter(reader)).planes[0].astype(int)


@pytest.mark.parametrize(("codec", "tolerance"), [("libx264", 1), ("libvpx-vp9", 2)])
def test_grey_keeps_its_contrast(tmp_path: Path, codec: str, tolerance: int) -> None:
    """libswscale takes all grey for full range."""
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt="gray"))
    options = EncodeOptions(codec=codec, crf=1, pix_fmt="yuv420p")
    rewrite(source, tmp_path / "out.mkv", frames=2, options=options)
    assert np.abs(luma(tmp_path / "out.mkv") - luma(source)).mean() < tolerance
    assert probe(tmp_path / "out.mkv").colour == probe(source).colour


@pytest.mark.parametrize(
    ("pix_fmt", "given", "factor"),
    [
        ("gray", "yuv420p10le", 4),
        ("gray10le", "yuv420p10le", 1),
        ("yuv420p", "gray", 1),
        ("yuv444p12le", "gray12le", 1),
    ],
)
def test_grey_is_exact_where_nothing_is_lost(tmp_path: Path, pix_fmt: str, given: str, factor: int) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt=pix_fmt))
    rewrite(source, tmp_path / "out.mkv", frames=2, options=EncodeOptions(codec="ffv1", pix_fmt=given))
    assert probe(tmp_path / "out.mkv").pix_fmt == given
    np.testing.assert_array_equal(luma(tmp_path / "out.mkv"), factor * luma(source))


def test_grey_becomes_what_all_players_know(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt="gray"))
    rewrite(source, tmp_path / "out.webm", frames=2, options=EncodeOptions())
    assert probe(tmp_path / "out.webm").pix_fmt == "yuv420p"


@pytest.mark.parametrize("colour", [(1, 1, 1, 1), (1, 1, 1, 2), (6, 6, 6, 1), (2, 2, 2, 1)])
def test_rgb_says_that_it_is(tmp_path: Path, colour: tuple[int, int, int, int]) -> None:
    """It was tagged with the source's matrix, and read as YUV."""
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt="yuv444p", colour=colour))
    options = EncodeOptions(codec="libx264rgb", crf=0, preset="ultrafast")
    writer = rewrite(source, tmp_path / "out.mkv", frames=2, options=options)
    assert not any("range" in note for note in writer.notes)
    assert probe(tmp_path / "out.mkv").pix_fmt == "gbrp"
    with FrameReader(source) as reader:
        frame = next(iter(reader))
    expected = planes_to_rgb(frame.planes, frame.layout, frame.colour, torch.device("cpu"))[0].clamp(0, 1)
    with av.open(str(tmp_path / "out.mkv")) as container:
        decoded = next(container.decode(video=0))
        made = decoded.to_ndarray(format="rgb24").astype(float)
    assert (decoded.colorspace, decoded.color_range) == (0, 2)
    assert np.abs(made - 255 * expected.permute(1, 2, 0).numpy()).max() < 2


@pytest.mark.parametrize(
    ("codec", "extension"), [("prores_ks", "mov"), ("libvpx", "webm"), ("mpeg4", "mov"), ("ffv1", "avi")]
)
def test_full_range_is_converted_where_it_cannot_be_told(tmp_path: Path, codec: str, extension: str) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", colour=(1, 1, 1, 2)))
    output = tmp_path / f"out.{extension}"
    options = EncodeOptions(codec=codec, options={"b": "8M"} if codec == "libvpx" else {})
    writer = rewrite(source, output, frames=2, options=options)
    assert probe(output).colour.range != 2
    scale = 4 if codec == "prores_ks" else 1
    assert np.abs(luma(output) / scale - (16 + luma(source) * 219 / 255)).mean() < 1.5
    assert any("limited range" in note for note in writer.notes)


@pytest.mark.parametrize(("codec", "extension"), [("mpeg4", "mp4"), ("libx264", "mov"), ("ffv1", "mkv")])
def test_full_range_stays_where_it_can_be_told(tmp_path: Path, codec: str, extension: str) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", colour=(1, 1, 1, 2)))
    writer = rewrite(source, tmp_path / f"out.{extension}", frames=2, options=EncodeOptions(codec=codec))
    assert probe(tmp_path / f"out.{extension}").colour.range == 2
    assert not any("range" in note for note in writer.notes)


@pytest.mark.parametrize("codec", ["png", "qtrle"])
def test_colour_stays_in_encoders_that_take_palettes_and_grey_too(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt="yuv444p"))
    rewrite(source, tmp_path / "out.mov", frames=2, options=EncodeOptions(codec=codec))
    assert probe(tmp_path / "out.mov").pix_fmt in ("rgb24", "bgr24", "gbrp")


def test_time_codes_that_the_rate_does_not_have_are_left_out(tmp_path: Path) -> None:
    source = time_coded(tmp_path / "in.mov", "01:00:00;00", Fraction(30000, 1001))
    for rate, stays in ((Fraction(60000, 1001), True), (Fraction(50), False), (Fraction(300), False)):
        writer = rewrite(source, tmp_path / f"{rate.numerator}.mov", rate)
        assert any("the time code 01:00:00;00" in note for note in writer.notes) != stays
        with av.open(str(tmp_path / f"{rate.numerator}.mov")) as container:
            assert ("timecode" in container.streams.video[0].metadata) == stays


def test_tracks_of_data_stay_beside_chapters(tmp_path: Path) -> None:
    """MP4 has the titles of chapters in such a track; others are other people's."""
    plain, source = make_clip(tmp_path / "plain.mp4"), tmp_path / "in.mp4"
    with av.open(str(plain)) as first, av.open(str(source), "w") as second:
        stream = second.add_stream_from_template(first.streams.video[0], opaque=True)
        text = second.add_mux_stream("mov_text")
        second.set_chapters(
            [{"id": 0, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}]
        )
        for number, packet in enumerate(packet for packet in first.demux() if packet.size):
            packet.stream = stream
            second.mux(packet)
            told = av.Packet(struct.pack(">H", 5) + b"there")
            told.stream, told.time_base = text, Fraction(1, 24)
            told.pts = told.dts = number
            told.duration = 1
            second.mux(told)
    # As cameras write where they were: a kind of track of their own.
    source.write_bytes(source.read_bytes().replace(b"sbtl", b"meta").replace(b"tx3g", b"gpmd"))
    kinds = [stream.kind for stream in probe(source).streams]
    writer = rewrite(source, tmp_path / "out.mp4")
    assert [stream.kind for stream in probe(tmp_path / "out.mp4").streams] == kinds == ["video", "data", "data"]
    assert stream_packets(tmp_path / "out.mp4", 1) == stream_packets(source, 1)
    assert not any("left out" in note for note in writer.notes)


def test_sound_beyond_the_announced_end_is_copied(tmp_path: Path) -> None:
    """As long as it goes on from what came before; the file just says too little."""
    source = make_clip(tmp_path / "in.mkv", Clip(frames=360, sounds=[Sound(seconds=Fraction(15))]))
    content = bytearray(source.read_bytes())
    place = content.index(bytes.fromhex("448988")) + 3  # Duration, of eight bytes: milliseconds
    content[place : place + 8] = struct.pack(">d", 2000.0)
    source.write_bytes(content)
    assert (probe(source).duration or 0) < 3
    rewrite(source, tmp_path / "out.mkv")
    assert stream_packets(tmp_path / "out.mkv", 1) == stream_packets(source, 1)


def test_tags_are_no_reason_to_fail(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(metadata={"TITLE": "T"}))
    rewrite(source, tmp_path / "out.f4v")
    assert len(video_times(tmp_path / "out.f4v")) == 30


def test_transparency_that_is_lost_is_noted(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt="yuva420p"))
    writer = rewrite(source, tmp_path / "out.mkv", frames=2, options=LOSSLESS)
    assert "transparency is left out" in writer.notes


def test_full_range_is_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(pix_fmt="yuvj420p", codec="mjpeg", colour=(5, 2, 2, 2)))
    output = tmp_path / "out.mp4"
    writer = rewrite(source, output)
    assert probe(source).colour.range == probe(output).colour.range == 2
    assert writer.notes == []


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le"])
@pytest.mark.parametrize("size", [(96, 64), (97, 65)])
def test_samples_survive(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt=pix_fmt, size=size))
    output = tmp_path / "out.mkv"
    rewrite(source, output, frames=3, options=LOSSLESS)
    with FrameReader(output) as reader:
        assert reader.info.pix_fmt == pix_fmt
        for frame in reader:
            for plane, wanted in zip(frame.planes, picture_planes(frame.layout, *size, frame.index), strict=True):
                np.testing.assert_array_equal(plane, wanted)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "given", "noted"),
    [
        ("yuv420p10le", "libx264", "yuv420p10le", False),
        ("yuv422p10le", "libx265", "yuv422p10le", False),
        ("yuv444p12le", "libx264", "yuv444p10le", True),
        ("yuv422p10le", "libsvtav1", "yuv420p10le", True),
        ("yuv420p10le", "libvpx-vp9", "yuv420p", True),
        ("gray10le", "ffv1", "gray10le", False),
    ],
)
def test_pixel_formats(tmp_path: Path, pix_fmt: str, codec: str, given: str, noted: bool) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", pix_fmt=pix_fmt))
    output = tmp_path / "out.mkv"
    writer = rewrite(source, output, frames=2, options=EncodeOptions(codec=codec))
    assert probe(output).pix_fmt == given
    assert any(given in note for note in writer.notes) == noted


def test_odd_sizes_are_kept_where_x264_subsamples(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1", size=(97, 65)))
    output = tmp_path / "out.mp4"
    writer = rewrite(source, output, frames=2)
    after = probe(output)
    assert (after.width, after.height, after.pix_fmt) == (97, 65, "yuv444p")
    assert any("yuv444p" in note for note in writer.notes)


def test_what_a_container_cannot_hold_is_left_out_and_noted(tmp_path: Path) -> None:
    clip = Clip(sounds=[Sound()], subtitles=[(Fraction(0), Fraction(1, 4), "one")], attachment=b"font")
    source = make_clip(tmp_path / "in.mkv", clip)
    writer = rewrite(source, tmp_path / "out.mp4")
    assert [stream.kind for stream in probe(tmp_path / "out.mp4").streams] == ["video", "audio"]
    assert [note.split("(")[1] for note in writer.notes] == ["subtitle, subrip)", "attachment, font.ttf)"]


def test_slow_motion_leaves_out_what_has_a_clock(tmp_path: Path) -> None:
    clip = Clip(sounds=[Sound()], chapters=[(0, 500, "only")], attachment=b"font")
    writer = rewrite(make_clip(tmp_path / "in.mkv", clip), tmp_path / "out.mkv", copy_audio=False)
    after = probe(tmp_path / "out.mkv")
    assert [stream.kind for stream in after.streams] == ["video", "attachment"]
    assert after.chapters == 0
    assert any("audio, chapters" in note for note in writer.notes)


def test_streams_are_interleaved(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(frames=96, sounds=[Sound(seconds=Fraction(4))]))
    output = tmp_path / "out.mkv"
    rewrite(source, output, frames=240)
    with av.open(str(output)) as container:
        times = [
            packet.dts * packet.time_base for packet in container.demux() if packet.size and packet.dts is not None
        ]
    assert max(a - b for a, b in pairwise(times)) < Fraction(1, 10)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4", "ffv1", "prores_ks"])
def test_encoders(tmp_path: Path, codec: str, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / ("out.mov" if codec == "prores_ks" else "out.mkv")
    rewrite(make_clip(tmp_path / "in.mp4"), output, frames=5, options=EncodeOptions(codec=codec))
    assert len(video_times(output)) == 5
    assert capfd.readouterr() == ("", "")


def test_every_encoder_keeps_its_quality(tmp_path: Path) -> None:
    """FFmpeg's own default for MPEG-4 is a bit rate for the pictures of 1999."""
    source, sizes = make_clip(tmp_path / "in.mp4"), []
    for crf in (None, 31):
        output = tmp_path / f"{crf}.mkv"
        rewrite(source, output, frames=10, options=EncodeOptions(codec="mpeg4", crf=crf))
        sizes.append(output.stat().st_size)
    assert sizes[1] < 0.5 * sizes[0]
    info = probe(source)
    with av.open(str(tmp_path / "None.mkv")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            (luma, *_) = picture_planes(info.layout, info.width, info.height, number)
            made = frame.to_ndarray()[: info.height].astype(float)
            assert np.mean((made - luma) ** 2) < 4


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ("libx264", {"crf": "30"}),
        ("h264_nvenc", {"rc": "vbr", "cq": "30", "b": "0"}),
        ("hevc_qsv", {"global_quality": "30"}),
        ("h264_amf", {"rc": "cqp", "qp_i": "30", "qp_p": "30", "qp_b": "30"}),
        ("hevc_amf", {"rc": "cqp", "qp_i": "30", "qp_p": "30"}),
        ("mpeg4", {"qmin": "30", "qmax": "30"}),
    ],
)
def test_quality_is_told_to_each_encoder_in_its_way(codec: str, told: dict[str, str]) -> None:
    """Those of graphics cards too, which no machine for tests may have."""
    assert encoders._constant_quality(codec, 30) == told


@pytest.mark.parametrize("codec", sorted(set(encoders._KNOWN_ENCODERS) & av.codecs_available))
def test_encoders_have_the_options_that_they_are_told(tmp_path: Path, codec: str) -> None:
    """Of all that this FFmpeg knows, whether or not they open here; who asks for a bit rate gets that alone."""
    info = probe(make_clip(tmp_path / "in.mp4"))
    usual = encoders._settings(codec, info, EncodeOptions(), [])
    quality = encoders._DEFAULT_QUALITY.get(codec)
    assert usual.items() >= ({} if quality is None else encoders._constant_quality(codec, quality)).items()
    asked = encoders._settings(codec, info, EncodeOptions(options={"b": "8M"}), [])
    assert asked == {name: value for name, value in usual.items() if name == "x265-params"} | {"b": "8M"}


def test_webm_has_its_own_usual_encoders(tmp_path: Path) -> None:
    for name, pix_fmt, codec in (("8", "yuv420p", "vp9"), ("10", "yuv420p10le", "av1")):
        source = make_clip(tmp_path / f"{name}.mkv", Clip(frames=2, codec="ffv1", pix_fmt=pix_fmt))
        rewrite(source, tmp_path / f"{name}.webm", frames=2, options=EncodeOptions())
        after = probe(tmp_path / f"{name}.webm")
        assert (after.codec, after.pix_fmt) == (codec, pix_fmt)


def test_output_appears_only_when_complete(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4"))
    output = tmp_path / "out.mp4"
    writer = FrameWriter(output, info, Fraction(60), FAST, threads=1)
    writer.write(picture_planes(info.layout, 96, 64, 0), Fraction(0))
    assert not output.exists()
    assert len(leftovers(tmp_path)) == 1
    assert leftovers(tmp_path)[0].endswith(".mp4")
    writer.close()
    writer.close()
    assert output.exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    info = probe(make_clip(tmp_path / "in.mp4", Clip(sounds=[Sound()])))
    older = tmp_path / "out.mp4"
    older.write_bytes(b"older")

    def interrupted() -> None:
        with FrameWriter(older, info, Fraction(60), FAST, overwrite=True, threads=1) as writer:
            for number in range(20):
                writer.write(picture_planes(info.layout, 96, 64, number), Fraction(number, 60))
            raise error

    with pytest.raises(error):
        interrupted()
    assert older.read_bytes() == b"older"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    source = make_clip(tmp_path / "in.mp4", Clip(sounds=[Sound()]))
    write = AtomicFile.write

    def limited(self: AtomicFile, data: bytes | memoryview) -> int:
        if self.tell() + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(AtomicFile, "write", limited)
    with pytest.raises(EncodeError, match="No space left") as caught:
        rewrite(source, tmp_path / "out.mkv", frames=200, options=LOSSLESS)
    assert caught.value.exit_code == ExitCode.FAILED
    assert not (tmp_path / "out.mkv").exists()
    assert leftovers(tmp_path) == []


def test_no_frame_is_an_error(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4"))
    with pytest.raises(EncodeError, match="no frame"), FrameWriter(tmp_path / "out.mp4", info, Fraction(60), FAST):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_times_off_the_grid_are_refused(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4"))
    planes = picture_planes(info.layout, 96, 64, 0)
    writer = FrameWriter(tmp_path / "out.mp4", info, Fraction(60), FAST)
    writer.write(planes, Fraction(0))
    with pytest.raises(ValueError, match="multiple"):
        writer.write(planes, Fraction(1, 59))
    writer.discard()
    assert leftovers(tmp_path) == []


def refused(tmp_path: Path, info: MediaInfo, name: str, options: EncodeOptions = FAST) -> str:
    with pytest.raises((UsageError, OutputError)) as caught:
        FrameWriter(tmp_path / name, info, Fraction(60), options)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value) + caught.value.hint
    assert caught.value.hint
    assert leftovers(tmp_path) == []
    return f"{caught.value} {caught.value.hint}"


def test_refusals_before_any_work(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4"))
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    assert "exists already" in refused(tmp_path, info, "there.mp4")
    assert "is the input" in refused(tmp_path, info, "in.mp4")
    assert "is a folder" in refused(tmp_path, info, "folder.mp4")
    assert "does not exist" in refused(tmp_path, info, "missing/out.mp4")
    assert "not a video format" in refused(tmp_path, info, "out.docx")
    assert "no encoder 'h265x'" in refused(tmp_path, info, "out.mp4", EncodeOptions(codec="h265x"))
    assert "libx264" in refused(tmp_path, info, "out.mp4", EncodeOptions(codec="h265x"))
    assert "not a video encoder" in refused(tmp_path, info, "out.mp4", EncodeOptions(codec="aac"))
    assert "does not take rgb24" in refused(tmp_path, info, "out.mp4", EncodeOptions(pix_fmt="rgb24"))
    assert "no pixel format" in refused(tmp_path, info, "out.mp4", EncodeOptions(pix_fmt="yuv420"))
    assert "no option 'crfx'" in refused(tmp_path, info, "out.mp4", EncodeOptions(options={"crfx": "1"}))
    assert "no --crf" in refused(tmp_path, info, "out.mkv", EncodeOptions(codec="ffv1", crf=18))
    assert "does not take" in refused(tmp_path, info, "out.mp4", EncodeOptions(preset="warp"))
    assert "cannot hold" in refused(tmp_path, info, "out.webm", EncodeOptions(codec="libx264"))


def test_check_encoder() -> None:
    check_encoder("libx264")
    with pytest.raises(UsageError):
        check_encoder("none_such")


def test_hdr10_metadata_reaches_the_bitstream(tmp_path: Path) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    clip = Clip(
        frames=4,
        codec="libx265",
        pix_fmt="yuv420p10le",
        colour=(9, 9, 16, 1),
        options={"x265-params": f"log-level=none:hdr10=1:master-display={display}:max-cll=1000,400"},
    )
    source = make_clip(tmp_path / "in.mp4", clip)
    wanted = probe(source).hdr
    assert wanted is not None
    assert wanted.mastering is not None
    assert wanted.mastering.brightest == 1000
    assert (wanted.max_content_light, wanted.max_average_light) == (1000, 400)
    for codec in ("libx265", "libx264", "libsvtav1"):
        output = tmp_path / f"{codec}.mp4"
        rewrite(source, output, frames=4, options=EncodeOptions(codec=codec))
        found = probe(output).hdr
        assert found is not None
        assert found.mastering is not None
        assert (found.max_content_light, found.max_average_light) == (1000, 400)
        assert _close(found.mastering.red, wanted.mastering.red)
        assert _close(found.mastering.white, wanted.mastering.white)
        assert _close([found.mastering.brightest / 1000], [wanted.mastering.brightest / 1000])
    writer = rewrite(source, tmp_path / "vp9.mkv", frames=4, options=EncodeOptions(codec="libvpx-vp9"))
    assert any("HDR10" in note for note in writer.notes)


def _close(one: Sequence[Fraction], other: Sequence[Fraction]) -> bool:
    return all(abs(a - b) < Fraction(1, 5000) for a, b in zip(one, other, strict=True))


def test_damaged_sound_is_copied_as_far_as_it_can_be(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.ts", Clip(frames=48, sounds=[Sound(seconds=Fraction(2))]))
    content = bytearray(whole.read_bytes())
    noise = random.Random(0)
    for _ in range(12):
        place = noise.randrange(len(content) // 4, len(content) * 3 // 4)
        content[place : place + 40] = noise.randbytes(40)
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(content)
    writer = rewrite(damaged, tmp_path / "out.mp4", frames=120)
    kept, all_packets = len(stream_packets(tmp_path / "out.mp4", 1)), len(stream_packets(whole, 1))
    assert all_packets * 3 // 4 < kept < all_packets
    assert len(writer.notes) == len(set(writer.notes)) > 0
    assert len(video_times(tmp_path / "out.mp4")) == 120


def test_at_8k_the_encoder_looks_fewer_frames_ahead(tmp_path: Path) -> None:
    info = probe(make_clip(tmp_path / "in.mp4", Clip(2)))
    large = replace(info, width=7680, height=4320)
    output, rate = tmp_path / "out.mp4", Fraction(24)
    assert "rc-lookahead" not in plan_encoder(output, info, rate, FAST).options
    plan = plan_encoder(output, large, rate, FAST)
    assert plan.options["rc-lookahead"] == "8"
    assert plan.notes == ("libx264 looks 8 frames ahead, to save memory (--encoder-option rc-lookahead=N for more)",)
    asked = plan_encoder(output, large, rate, replace(FAST, options={"rc-lookahead": "20"}))
    assert asked.options["rc-lookahead"] == "20"
    assert asked.notes == ()
