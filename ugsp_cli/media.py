"""What is in a file: one record per file and per stream.

Only local files are opened: names are handed to FFmpeg as `file:` names, and whatever a file refers to (playlists,
references in MP4) may only be a file or a pipe.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ugsp_cli.errors import InputError
from ugsp_cli.hdr import HdrMetadata, read_hdr, side_data
from ugsp_cli.pixels import ColourTags, PixelLayout, colour_of, layout_of

__all__ = [
    "LARGE",
    "ColourTags",
    "MediaInfo",
    "PixelLayout",
    "StreamInfo",
    "codec_threads",
    "is_absurd",
    "lacks_presentation_times",
    "latest_time",
    "open_input",
    "probe",
    "video_stream",
]

# Demuxers that accept a file by its name alone (text, screen dumps, headerless pixels): what they call a video is none.
_NOT_VIDEO_FORMATS = {"adf", "bin", "idf", "image2", "rawvideo", "tty", "xbin"}

_NOT_VIDEO_HINT = "Check that it is a complete video file."

LONGEST_GAP = 10
"""Seconds from one thing in a stream to the next that are believed beyond the end of the file as it is announced."""

_END_TOLERANCE = 10  # seconds that a stream may outlast what its container says

_PROBE_PACKETS = 2000  # packets of the video stream that are tried before a file counts as undecodable


LARGE = 4096 * 2304
"""Pixels of frames beyond which what encoders and decoders hold is counted in gigabytes."""

_THREADS_IF_LARGE = 4  # each holds frames of its own


@dataclass(frozen=True)
class StreamInfo:
    """One stream of a file."""

    index: int
    """Its number in the file."""
    kind: str
    """video, audio, subtitle, data, attachment or unknown."""
    codec: str
    """FFmpeg's name of the codec (h264, aac); empty where unknown or where there is none."""
    language: str | None
    """Language code as stored."""
    title: str | None
    """Title, or an attachment's file name."""
    disposition: tuple[str, ...]
    """Names of the flags that are set: default, forced, attached_pic, ..."""
    sample_rate: int | None
    """Sound: samples per second."""
    channels: int | None
    """Sound: number of channels."""


@dataclass(frozen=True)
class MediaInfo:
    """What is known of a file before all of it is decoded."""

    path: Path
    """The file."""
    container: str
    """FFmpeg's name of the container format (its first name: mov, matroska)."""
    codec: str
    """FFmpeg's name of the video codec."""
    stream_index: int
    """Number of the video stream in the file."""
    width: int
    """Pixels, as stored (not rotated)."""
    height: int
    """Pixels, as stored (not rotated)."""
    pix_fmt: str
    """FFmpeg's name of the pixel format as stored."""
    layout: PixelLayout
    """The layout in which frames are delivered."""
    colour: ColourTags
    """The colour tags of the frames that are delivered."""
    rate: Fraction
    """Average frame rate, frames per second."""
    constant_rate: Fraction | None
    """The nominal rate where the container states that it is constant, else None."""
    time_base: Fraction
    """Unit of the video stream's time stamps, seconds."""
    start: Fraction
    """Time of the video stream's first frame, seconds."""
    duration: Fraction | None
    """Of the video, seconds, where known."""
    frames_estimate: int | None
    """About how many frames there are, where known."""
    rotation: int
    """Degrees counter-clockwise that a player turns the picture by."""
    display_matrix: tuple[int, ...] | None
    """The nine numbers of FFmpeg's display matrix, where the file has one (rotation and mirroring)."""
    sample_aspect_ratio: Fraction | None
    """Width of a pixel by its height, where stated."""
    interlaced: bool | None
    """Whether the first frame is interlaced."""
    hdr: HdrMetadata | None
    """Mastering display and content light levels, where stated."""
    bit_rate: int | None
    """Of the whole file, bits per second, where known."""
    streams: tuple[StreamInfo, ...]
    """All streams, the video among them."""
    chapters: int
    """Number of chapters."""
    metadata: dict[str, str]
    """The container's own tags."""


def open_input(path: Path | str) -> InputContainer:
    """Open a local file for reading. Raises InputError with a message for the user."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file", "Check the name and the folder.")
    if path.is_dir():
        raise InputError(f"{path} is a folder", "Name a video file, or use `ugsp batch` for a folder.")
    if not path.is_file():  # which is opened more than once, and read to and fro
        raise InputError(f"{path} is no regular file", "Write what it holds into a file first.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it", "Check the file's permissions.")
    try:
        container = av.open(
            # "file:" keeps names such as "a:b.mp4" from being read as protocols.
            f"file:{path}",
            options={"protocol_whitelist": "file,pipe"},
            metadata_errors="surrogateescape",
        )
    except (av.FFmpegError, ValueError, LookupError) as error:
        raise InputError(f"{path} cannot be read as a video: {_reason(error)}", _NOT_VIDEO_HINT) from error
    names = container.format.name.split(",")
    if any(name in _NOT_VIDEO_FORMATS or name.endswith("_pipe") for name in names):
        container.close()
        raise InputError(f"{path} is not a video (it reads as '{names[0]}')", _NOT_VIDEO_HINT)
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The video stream to work on: the default one, else the first; never a cover picture. Raises InputError."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise InputError(f"{path} holds no video", _NOT_VIDEO_HINT)
    usable = [stream for stream in streams if stream.codec_context is not None]
    if not usable:
        raise InputError(f"{path}: there is no decoder for its video", "Convert the file to a common codec first.")
    return next((stream for stream in usable if stream.disposition & Disposition.default), usable[0])


def probe(path: Path | str) -> MediaInfo:
    """Read what a file holds. Decodes one frame, since only frames know their rotation and colours for sure.

    Raises InputError where the file is missing, unreadable or holds no decodable video.
    """
    path = Path(path)
    with open_input(path) as container:
        stream = video_stream(container, path)
        frame = _first_frame(container, stream)
        if frame is None:
            raise InputError(f"{path}: no frame of its video can be decoded", "The file may be damaged or encrypted.")
        return _describe(path, container, stream, frame)


def latest_time(container: InputContainer) -> Fraction | None:
    """The time, seconds, after which nothing in a file can truly lie; None where the file does not say how long it is.
    Damage makes stamps that are hours late."""
    if container.duration is None:
        return None
    return Fraction((container.start_time or 0) + container.duration, av.time_base) + _END_TOLERANCE


def is_absurd(time: Fraction, before: Fraction, latest: Fraction | None) -> bool:
    """Whether the time of something in a stream cannot be true, after that of the thing before it; latest: from
    ``latest_time``; all in seconds. Where a file just says too little of its length things go on from each other."""
    return latest is not None and time > latest and time - before > LONGEST_GAP


def codec_threads(info: MediaInfo) -> int | None:
    """Threads for the decoder or encoder of frames of that size; None: as many as it wants."""
    return min(_THREADS_IF_LARGE, os.cpu_count() or 1) if info.width * info.height > LARGE else None


def lacks_presentation_times(container: str) -> bool:
    """Whether a container format stores only the decoding order; what FFmpeg gives as presentation times is a guess."""
    return container == "avi"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    for count, packet in enumerate(container.demux(stream)):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            frames = []  # a damaged packet; a later one may do
        if frames:
            return frames[0]
        if count > _PROBE_PACKETS:
            break
    return None


def _describe(path: Path, container: InputContainer, stream: VideoStream, frame: VideoFrame) -> MediaInfo:
    try:
        layout = layout_of(frame.format.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}", "Convert the file to a common codec first.") from error
    assert stream.time_base is not None  # every demuxer sets one
    rate, constant_rate = _rates(stream)
    duration = _duration(container, stream)
    matrix = _display_matrix(frame)
    return MediaInfo(
        path=path,
        container=container.format.name.split(",")[0],
        codec=stream.codec_context.codec.canonical_name,
        stream_index=stream.index,
        width=frame.width,
        height=frame.height,
        pix_fmt=frame.format.name,
        layout=layout,
        colour=colour_of(frame),
        rate=rate,
        constant_rate=constant_rate,
        time_base=stream.time_base,
        start=_start(stream, frame),
        duration=duration,
        frames_estimate=stream.frames or (round(duration * rate) if duration else None),
        rotation=frame.rotation,
        display_matrix=matrix,
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        interlaced=frame.interlaced_frame,
        hdr=read_hdr(frame),
        bit_rate=container.bit_rate or None,
        streams=tuple(_describe_stream(each) for each in container.streams),
        chapters=len(container.chapters()),
        metadata=dict(container.metadata),
    )


def _describe_stream(stream: av.stream.Stream) -> StreamInfo:
    context = stream.codec_context
    codec = context.codec.canonical_name if context is not None else ""
    if not codec and stream.type == "data":
        codec = getattr(stream, "name", None) or ""
    sound = stream.type == "audio" and context is not None
    return StreamInfo(
        index=stream.index,
        kind=stream.type,
        codec=codec,
        language=stream.language,
        title=stream.metadata.get("title") or stream.metadata.get("filename"),
        disposition=tuple(flag.name for flag in stream.disposition if flag.name),
        sample_rate=getattr(context, "sample_rate", None) if sound else None,
        channels=getattr(context, "channels", None) if sound else None,
    )


def _rates(stream: VideoStream) -> tuple[Fraction, Fraction | None]:
    """The average rate, and the nominal one where the stream is of constant rate.

    FFmpeg's base rate is the lowest rate whose grid meets every time stamp: of a video of constant rate it is that
    rate, of any other it is far above the average.
    """
    average, base = stream.average_rate, stream.base_rate
    rate = average or stream.guessed_rate or base or Fraction(25)
    if base and abs(rate - base) * 5000 < base:
        return base, base
    return rate, None


def _duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration:
        return Fraction(container.duration, av.time_base)
    return None


def _start(stream: VideoStream, frame: VideoFrame) -> Fraction:
    pts = stream.start_time or 0
    if frame.pts is not None and not lacks_presentation_times(stream.container.format.name):
        pts = frame.pts
    return pts * (frame.time_base or stream.time_base or Fraction(1))


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    content = side_data(frame).get(SideDataType.DISPLAYMATRIX)
    return struct.unpack("=9i", content[:36]) if content else None
