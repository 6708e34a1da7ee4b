"""Decoding: a video file becomes frames with exact times, planar samples and scene scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.filter import Graph
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

from ugsp_cli.errors import DecodeError, InputError
from ugsp_cli.media import (
    MediaInfo,
    codec_threads,
    is_absurd,
    lacks_presentation_times,
    latest_time,
    open_input,
    probe,
)
from ugsp_cli.pixels import ColourTags, PixelLayout, colour_of, stored_as_rgb
from ugsp_cli.timeline import RateGrid

__all__ = ["Frame", "FrameReader"]

_DURATION_TAG = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded source frame."""

    index: int
    """Number of the frame, from 0."""
    time: Fraction
    """Seconds, as the file counts them; a container's rounding is taken out (see `RateGrid`)."""
    planes: tuple[np.ndarray, ...]
    """Y, U, V as [height, width] (chroma at its own size), or Y alone; uint8 at 8 bits, else uint16 below 2**bits."""
    layout: PixelLayout
    """What the planes are."""
    colour: ColourTags
    """What the numbers in the planes mean."""
    scene_score: float
    """0..100: how much this frame looks like the start of a new scene (libavfilter's scdet); 0 for the first frame."""
    duplicate: bool
    """Whether the planes equal those of the frame before."""


class FrameReader:
    """Iterates once over the frames of a file, in order of strictly increasing time.

    A context manager. Damaged packets are skipped; what was lost is counted. Raises InputError where there is no video
    to begin with and DecodeError where it gives out later in a way that cannot be skipped.
    """

    info: MediaInfo
    """What is known of the file."""
    corrupt: int
    """Packets that could not be decoded and frames that the decoder had to patch up, so far."""
    dropped: int
    """Frames left out because their time did not increase, so far."""
    misplaced: int
    """Frames whose time cannot be true, so far: they are shown after the one before them."""
    notes: list[str]
    """What the user should know about the file, for example that it ends early."""

    def __init__(self, path: Path | str, scene_detection: bool = True, threads: int | None = None) -> None:
        """threads: for the decoder; None: what suits the size, see `codec_threads`."""
        self.info = probe(path)
        self.corrupt = 0
        self.dropped = 0
        self.misplaced = 0
        self.notes = []
        if self.info.interlaced:
            self.notes.append("the input is interlaced, and taken as whole pictures: deinterlace it first if it combs")
        self._grid = RateGrid(self.info.constant_rate, self.info.time_base)
        self._container = open_input(self.info.path)
        stream = self._container.streams[self.info.stream_index]
        assert isinstance(stream, VideoStream)  # as probe found
        self._stream = stream
        self._latest = latest_time(self._container)
        self._stream.thread_type = "AUTO"
        self._stream.thread_count = threads or codec_threads(self.info) or 0  # 0: FFmpeg's choice
        self._scenes = _SceneScorer(self.info) if scene_detection else None
        self._first_dts: int | None = None  # of the first frame, where only decoding times are stored
        self._gap: Fraction | None = None  # seconds between the last two frames
        self._stored_duration = Fraction(0)  # of the newest frame, seconds; 0 where the file does not say

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Harmless when it is closed already."""
        self._container.close()

    @property
    def last_duration(self) -> Fraction:
        """How long the newest frame lasts, seconds: as stored, else as long as the one before, else 1 / rate."""
        return self._grid.duration(self._stored_duration) or self._gap or 1 / self.info.rate

    def __iter__(self) -> Iterator[Frame]:
        waiting: Frame | None = None
        for frame in self._frames():
            if frame.index == 1 and self._scenes is not None:
                waiting = frame  # whether a cut or fast motion lies before it, frame 2 helps to tell
                continue
            if waiting is not None and self._scenes is not None:
                yield replace(waiting, scene_score=min(waiting.scene_score, self._scenes.change))
                waiting = None
            yield frame
        if waiting is not None:
            yield waiting

    def _frames(self) -> Iterator[Frame]:
        index = 0
        previous: Frame | None = None
        for decoded in self._decoded():
            self._check_size(decoded)
            time = self._time(decoded, previous)
            if time is None:
                self.dropped += 1
                continue
            self._gap = time - previous.time if previous else None
            self._stored_duration = (decoded.duration or 0) * (decoded.time_base or self.info.time_base)
            picture = _planar(decoded, self.info.layout)
            planes = _planes(picture, self.info.layout)
            previous = Frame(
                index=index,
                time=time,
                planes=planes,
                layout=self.info.layout,
                colour=colour_of(decoded),
                scene_score=self._scenes.score(picture, index) if self._scenes else 0.0,
                duplicate=previous is not None and all(map(np.array_equal, planes, previous.planes)),
            )
            yield previous
            index += 1
        if previous is None:
            raise InputError(f"{self.info.path}: no frame of its video can be decoded", "The file may be damaged.")
        self._note_early_end(previous.time + self.last_duration - self.info.start)

    def _decoded(self) -> Iterator[VideoFrame]:
        packets: Iterator[Packet[VideoStream]] = self._container.demux(self._stream)
        while True:
            try:
                # The last packet is empty: it flushes the decoder, like None.
                packet: Packet[VideoStream] | None = next(packets)
            except StopIteration:
                return
            except av.InvalidDataError as error:
                # The demuxer cannot find its way any more. What the decoder still holds is good.
                self.notes.append(f"the file is damaged: it can be read no further ({error.strerror})")
                packet, packets = None, iter(())
            except (av.FFmpegError, OSError) as error:
                raise DecodeError(f"{self.info.path}: reading failed: {error}", "Check the disk or network.") from error
            try:
                frames = self._stream.decode(packet)
            except av.InvalidDataError:
                self.corrupt += 1
                continue
            except av.FFmpegError as error:
                raise DecodeError(f"{self.info.path}: decoding failed: {error}", "The file may be damaged.") from error
            for frame in frames:
                self.corrupt += frame.is_corrupt
                yield frame

    def _note_early_end(self, read: Fraction) -> None:
        """Compare what was read, seconds, with what the stream itself announces (a cut-off download, for example)."""
        announced = _announced(self._stream, self.info.start)
        if announced is None:
            return
        if announced - read > max(announced / 50, 2 / self.info.rate):
            self.notes.append(f"the video ends early: {float(read):.3f} of {float(announced):.3f} s could be read")

    def _check_size(self, frame: VideoFrame) -> None:
        if (frame.width, frame.height) != (self.info.width, self.info.height):
            raise DecodeError(
                f"{self.info.path}: the picture changes from {self.info.width}x{self.info.height} "
                f"to {frame.width}x{frame.height} at {float(frame.time or 0):.3f} s",
                "Cut the file there, or convert it to one size first.",
            )

    def _time(self, frame: VideoFrame, previous: Frame | None) -> Fraction | None:
        """Seconds; None for a frame whose time does not increase."""
        stamp = self._stamp(frame)
        if stamp is not None and previous is not None and is_absurd(stamp, previous.time, self._latest):
            self.misplaced += 1
            stamp = None
        if stamp is None:
            return previous.time + 1 / self.info.rate if previous else self.info.start
        for time in (self._grid.time(stamp), stamp):
            if previous is None or time > previous.time:
                return time
        return None

    def _stamp(self, frame: VideoFrame) -> Fraction | None:
        """The time that is stored for a frame, seconds, where there is one."""
        unit = frame.time_base or self.info.time_base
        if not lacks_presentation_times(self.info.container):
            return frame.pts * unit if frame.pts is not None else None
        # Frames leave the decoder in order, each with the decoding time of the packet that pushed it out. That is later
        # than its own by a constant delay.
        if frame.dts is None:
            return None
        if self._first_dts is None:
            self._first_dts = frame.dts
        return self.info.start + (frame.dts - self._first_dts) * unit


def _announced(stream: VideoStream, start: Fraction) -> Fraction | None:
    """How long the stream itself, which starts then, says that it is, seconds. In Matroska a tag says when it ends."""
    told = _DURATION_TAG.fullmatch(stream.metadata.get("DURATION", ""))
    if told is not None:
        hours, minutes, seconds = map(Fraction, told.groups())
        return 3600 * hours + 60 * minutes + seconds - start
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * stream.time_base
    return None


class _SceneScorer:
    """libavfilter's scdet: how different two successive frames are, or how much more different than the two before
    them, whichever is less. (For the first two frames there are none before; see `FrameReader.__iter__`.)"""

    change: float
    """0..100: how much the newest difference of two frames differs from the one before it."""

    def __init__(self, info: MediaInfo) -> None:
        self.change = 0.0
        self._difference = 0.0
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=info.width,
            height=info.height,
            format=av.VideoFormat(info.layout.name, info.width, info.height),
            time_base=info.time_base,
        )
        self._graph.link_nodes(source, self._graph.add("scdet"), self._graph.add("buffersink")).configure()

    def score(self, frame: VideoFrame, index: int) -> float:
        frame.pts = index  # the filter wants increasing stamps, and reads nothing else from them
        self._graph.vpush(frame)
        results = self._graph.vpull().metadata
        difference = float(results.get("lavfi.scd.mafd", 0.0))
        self.change, self._difference = abs(difference - self._difference), difference
        return float(results.get("lavfi.scd.score", 0.0))


def _planar(frame: VideoFrame, layout: PixelLayout) -> VideoFrame:
    """The frame in that layout. Samples change only where the stored format is not planar YUV or grey already."""
    stored = frame.format.name
    if stored == layout.name or stored == layout.name.replace("yuv", "yuvj"):
        return frame
    interpolation = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    if stored_as_rgb(frame.format):
        return frame.reformat(
            format=layout.name,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=interpolation,
        )
    # Without a matrix or a range given, both sides keep the frame's own.
    return frame.reformat(format=layout.name, interpolation=interpolation)


def _planes(frame: VideoFrame, layout: PixelLayout) -> tuple[np.ndarray, ...]:
    """Contiguous copies of a frame's planes, without the padding at the end of rows."""
    dtype = np.dtype(np.uint8 if layout.bits == 8 else "<u2")
    planes = []
    for number in range(layout.planes):
        plane = frame.planes[number]
        rows, columns = layout.plane_size(number, frame.width, frame.height)
        samples = np.frombuffer(memoryview(plane), dtype).reshape(-1, abs(plane.line_size) // dtype.itemsize)[
            :rows, :columns
        ]
        # A negative line size means that rows are stored bottom up.
        planes.append(np.array(samples[::-1] if plane.line_size < 0 else samples, order="C"))
    return tuple(planes)
