"""Clips made in code: small, moving, and each with one thing that real files have.

Every clip shows a smooth texture that moves a few pixels per frame over a still gradient, so that interpolation, scene
scores and colours have something to work on. Lossless FFV1 where exact samples matter, x264 where B-frames do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ugsp_cli.pixels import PixelLayout, layout_of

__all__ = ["Clip", "Sound", "make_clip", "make_sound", "picture_planes", "video_frame"]

SPEED = 3  # pixels per frame that the texture moves by


@dataclass(frozen=True)
class Sound:
    """A sound track."""

    codec: str = "aac"
    """FFmpeg's name of the encoder."""
    seconds: Fraction = Fraction(1)
    """How long it lasts."""
    rate: int = 48000
    """Samples per second."""
    start: Fraction = Fraction(0)
    """When it starts, seconds."""
    language: str = "eng"
    """Language tag."""


@dataclass(frozen=True)
class Clip:
    """What a clip is made of. The defaults make a short 24 fps H.264 clip with B-frames and nothing else."""

    frames: int = 12
    """Number of frames."""
    rate: Fraction = Fraction(24)
    """Frames per second, unless `times` says otherwise."""
    times: Sequence[Fraction] | None = None
    """The frames' times, seconds (variable rate); None for constant rate from `start`."""
    start: Fraction = Fraction(0)
    """Time of the first frame, seconds."""
    time_base: Fraction | None = None
    """Unit of the time stamps; None for 1 / rate."""
    size: tuple[int, int] = (96, 64)
    """Width and height."""
    pix_fmt: str = "yuv420p"
    """FFmpeg's pixel format."""
    codec: str = "libx264"
    """FFmpeg's encoder."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of the encoder."""
    colour: tuple[int, int, int, int] = (1, 1, 1, 1)
    """matrix, primaries, transfer, range: BT.709, limited."""
    content: Callable[[int], int] = int
    """Which picture frame n shows: `int` moves, `lambda n: n // 2` repeats each picture."""
    cut: int | None = None
    """From this frame on the scene is another one."""
    rotation: int = 0
    """Degrees, counter-clockwise."""
    sample_aspect_ratio: Fraction | None = None
    """Width of a pixel by its height."""
    sounds: Sequence[Sound] = ()
    """Sound tracks."""
    subtitles: Sequence[tuple[Fraction, Fraction, str]] = ()
    """Start and end in seconds, and text, as SubRip."""
    chapters: Sequence[tuple[int, int, str]] = ()
    """Start and end in milliseconds, and title."""
    attachment: bytes | None = None
    """A font, so to speak."""
    cover: bool = False
    """Whether there is a cover picture."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The container's tags."""


def picture_planes(layout: PixelLayout, width: int, height: int, number: int, scene: int = 0) -> tuple[np.ndarray, ...]:
    """The samples of picture `number`, within limited range, as `Frame.planes` has them."""
    planes = []
    for plane in range(layout.planes):
        rows, columns = layout.plane_size(plane, width, height)
        scale_x, scale_y = width / columns, height / rows
        y, x = np.mgrid[0:rows, 0:columns]
        moved = x * scale_x - SPEED * number
        texture = np.sin(moved / 7 + plane) * np.cos(y * scale_y / 9 + moved / 23)
        value = 0.5 + 0.25 * texture + 0.15 * (y / rows - 0.5)
        value = 0.15 + 0.2 * np.abs(texture) if scene else value
        samples = 16 + 219 * (1 - value if plane and scene else value)
        planes.append((samples * 2 ** (layout.bits - 8)).round().astype(np.uint8 if layout.bits == 8 else np.uint16))
    return tuple(planes)


def make_clip(path: Path, clip: Clip = Clip()) -> Path:
    """Write the clip; the file's extension says the container. Returns the path."""
    with av.open(str(path), "w", container_options=_muxer_options(path)) as container:
        container.metadata.update(clip.metadata)
        video = _add_video(container, clip)
        sounds = [container.add_stream(sound.codec, rate=sound.rate, layout="stereo") for sound in clip.sounds]
        for stream, sound in zip(sounds, clip.sounds, strict=True):
            stream.metadata["language"] = sound.language
        text = container.add_mux_stream("subrip") if clip.subtitles else None
        if text is not None:
            text.metadata["language"] = "deu"
        if clip.attachment is not None:
            container.add_attachment("font.ttf", "application/x-truetype-font", clip.attachment)
        if clip.chapters:
            container.set_chapters(
                [
                    {
                        "id": number,
                        "start": start,
                        "end": end,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": title},
                    }
                    for number, (start, end, title) in enumerate(clip.chapters)
                ]
            )
        cover = _add_cover(container) if clip.cover else None
        container.start_encoding()
        if cover is not None:
            _write_cover(container, cover)
        packets = list(_video_packets(video, clip))
        for stream, sound in zip(sounds, clip.sounds, strict=True):
            assert isinstance(stream, AudioStream)
            packets += _sound_packets(stream, sound)
        if text is not None:
            for start, end, line in clip.subtitles:
                packets.append(_subtitle_packet(text, start, end, line))
        packets.sort(key=_decoding_time)
        for packet in packets:
            container.mux(packet)
    return path


def make_sound(path: Path, sound: Sound = Sound()) -> Path:
    """Write a file that holds sound only. Returns the path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(sound.codec, rate=sound.rate, layout="stereo")
        assert isinstance(stream, AudioStream)
        for packet in _sound_packets(stream, sound):
            container.mux(packet)
    return path


def _muxer_options(path: Path) -> dict[str, str]:
    # Starts that are no whole milliseconds are stored exactly only with a finer clock of the movie.
    return {"movie_timescale": "240000"} if path.suffix == ".mp4" else {}


def _add_video(container: av.container.OutputContainer, clip: Clip) -> VideoStream:
    options = {"libx264": {"preset": "veryfast", "crf": "12", "bf": "2", "b-adapt": "0"}}.get(clip.codec, {})
    stream = container.add_stream(clip.codec, rate=clip.rate, options=options | clip.options)
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    context.width, context.height = clip.size
    context.pix_fmt = clip.pix_fmt
    context.thread_count = 1
    context.time_base = clip.time_base or 1 / clip.rate
    stream.time_base = context.time_base
    context.colorspace, context.color_primaries, context.color_trc, context.color_range = clip.colour
    if clip.sample_aspect_ratio:
        context.sample_aspect_ratio = clip.sample_aspect_ratio
    if clip.rotation:
        stream.set_display_rotation(clip.rotation)
    return stream


def _add_cover(container: av.container.OutputContainer) -> VideoStream:
    stream = container.add_stream("png", rate=1, width=16, height=16, pix_fmt="rgb24")
    assert isinstance(stream, VideoStream)
    stream.disposition = av.stream.Disposition.attached_pic
    return stream


def _write_cover(container: av.container.OutputContainer, stream: VideoStream) -> None:
    frame = VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), format="rgb24")
    frame.pts = 0
    container.mux(stream.encode(frame))


def _video_packets(stream: VideoStream, clip: Clip) -> list[av.Packet]:
    time_base = clip.time_base or 1 / clip.rate
    times = clip.times or [clip.start + n / clip.rate for n in range(clip.frames)]
    packets = []
    for number, time in enumerate(times):
        frame = video_frame(clip, number)
        frame.pts, frame.time_base = round(time / time_base), time_base
        packets += stream.encode(frame)
    packets += stream.encode(None)
    for packet in packets:
        packet.duration = packet.duration or round(1 / clip.rate / packet.time_base)
    return packets


def video_frame(clip: Clip, number: int) -> VideoFrame:
    """Frame `number` of the clip, without a time."""
    width, height = clip.size
    layout = layout_of(clip.pix_fmt)
    scene = int(clip.cut is not None and number >= clip.cut)
    frame = VideoFrame(width, height, layout.name)
    for plane, samples in zip(
        frame.planes, picture_planes(layout, width, height, clip.content(number), scene), strict=True
    ):
        rows, columns = samples.shape
        target = np.frombuffer(memoryview(plane), samples.dtype).reshape(-1, plane.line_size // samples.itemsize)
        target[:rows, :columns] = samples
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = clip.colour
    return frame if layout.name == clip.pix_fmt else frame.reformat(format=clip.pix_fmt)


def _sound_packets(stream: AudioStream, sound: Sound) -> list[av.Packet]:
    samples = int(sound.seconds * sound.rate)
    tone = np.sin(2 * np.pi * 440 * np.arange(samples) / sound.rate).astype(np.float32) / 4
    context = stream.codec_context
    step = context.frame_size or 1024
    packets = []
    for first in range(0, samples, step):
        part = tone[first : first + step]
        if context.format.name.startswith("flt"):
            frame = AudioFrame.from_ndarray(np.stack([part, part]), format="fltp", layout="stereo")
        else:
            whole = (part * 32767).astype(np.int16)
            frame = AudioFrame.from_ndarray(np.stack([whole, whole], 1).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.time_base = sound.rate, Fraction(1, sound.rate)
        frame.pts = round(sound.start * sound.rate) + first
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _decoding_time(packet: av.Packet) -> Fraction:
    assert packet.dts is not None  # all encoders give one
    return packet.dts * packet.time_base


def _subtitle_packet(stream: av.stream.Stream, start: Fraction, end: Fraction, line: str) -> av.Packet:
    packet = av.Packet(line.encode())
    packet.stream = stream
    packet.time_base = Fraction(1, 1000)
    packet.pts = packet.dts = round(start * 1000)
    packet.duration = round((end - start) * 1000)
    return packet
