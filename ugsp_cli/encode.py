"""Encoding: planes and times become a complete file, with everything else that the source holds.

The file is written under a temporary name and renamed when it is complete, so a failure leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import lcm
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.packet import Packet
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ugsp_cli.atomic import AtomicFile
from ugsp_cli.encoders import EncodeOptions, check_encoder, configure, plan_encoder, tag
from ugsp_cli.errors import EncodeError, OutputError
from ugsp_cli.media import MediaInfo, codec_threads
from ugsp_cli.muxers import ISO_FORMATS, Memory, add_encoded, open_container
from ugsp_cli.pixels import HD_LINES, MATRIX_UNSPECIFIED, RANGE_FULL, PixelLayout, is_grey, layout_of
from ugsp_cli.remux import (
    StreamCopier,
    copy_chapters,
    holds_time_code,
    is_cover,
    is_timeless,
    kept_tags,
    lost_tags,
    stream_tags,
)
from ugsp_cli.timeline import format_rate

__all__ = ["EncodeOptions", "FrameWriter", "check_encoder", "check_output"]

_MILLISECOND_FORMATS = {"matroska", "webm"}
_FINEST_TIME_BASE = 10_000_000  # ticks per second; finer ones overflow what players and some muxers store
_COARSEST_TIMESCALE = 10_000  # MP4 ticks per second, as FFmpeg's muxer has it: coarser ones trouble some players


class FrameWriter:
    """Writes the output file. A context manager: leaving it normally completes the file, an exception removes it.

    Settles everything that can fail without work in the constructor (UsageError, OutputError, InputError); raises
    EncodeError later on. The temporary file is made by the constructor.
    """

    notes: list[str]
    """What the output lacks or changes against the source, for the user; complete after `close`."""

    def __init__(
        self,
        output: Path | str,
        info: MediaInfo,
        rate: Fraction,
        options: EncodeOptions | None = None,
        overwrite: bool = False,
        copy_audio: bool = True,
        threads: int | None = None,
    ) -> None:
        """rate: frames per second. copy_audio: False (slow motion) leaves out all that is tied to the source's time:
        sound, subtitles, data and chapters. threads: for the encoder; None: what suits the size (`codec_threads`)."""
        self.output = Path(output)
        self.notes = []
        self._info = info
        self._rate = rate
        self._threads = threads or codec_threads(info)
        if self.output.exists() and self.output.samefile(info.path):
            raise OutputError(f"{self.output} is the input", "Choose another name with -o.")
        self._plan = plan_encoder(self.output, info, rate, options or EncodeOptions())
        self.notes.extend(self._plan.notes)
        self._first_time: Fraction | None = None  # of the first frame, source seconds
        self._offset = Fraction(0)  # of the first frame, output seconds
        self._time_base = 1 / rate  # in which the video's packets are handed to the muxer
        self._movflags = "+faststart"  # of the MP4 family
        self._closed = False
        self._file = AtomicFile(self.output, overwrite)
        try:
            self._container = open_container(self._file, self.output)
            self._copier = StreamCopier(info, self._container, copy_streams=copy_audio)
            self._stream = self._add_streams()
            if copy_audio:
                copy_chapters(self._copier.source, self._container, self._copier.origin)
            else:
                self._note_left_out()
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def write(self, planes: Sequence[np.ndarray], time: Fraction) -> None:
        """Encode the next frame. planes: as in `Frame`, in the source's layout. time: seconds on the source's clock,
        a whole number of frames after the first one's and after the one before."""
        with self._failures():
            if self._first_time is None:
                self._start(time)
            assert self._first_time is not None
            number = (time - self._first_time) * self._rate
            if number.denominator != 1:
                raise ValueError(f"{time} s is no multiple of 1/{self._rate} s after the first frame")
            frame = self._frame(planes)
            frame.pts, frame.time_base, frame.duration = number.numerator, 1 / self._rate, 1
            self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file and give it its name. Removes it where that fails. Harmless when repeated."""
        if self._closed:
            return
        try:
            with self._failures():
                if self._first_time is None:
                    raise EncodeError(f"{self.output}: there was no frame to write")
                self._mux(self._stream.encode(None))
                self._copier.copy_until(None)
                self._container.close()
                self._file.commit()
        except BaseException:
            self.discard()
            raise
        self._closed = True
        self.notes.extend(note for note in self._copier.notes if note not in self.notes)
        self._copier.close()

    def discard(self) -> None:
        """Give up: leave no trace of the output. An older file of that name stays as it was."""
        self._closed = True
        # The container sees its file closed and writes no end: what would finish it may be gigabytes of work.
        self._file.discard()
        if hasattr(self, "_copier"):
            self._copier.close()

    def _add_streams(self) -> VideoStream:
        """Add all streams in the source's order. Returns the video's."""
        video: VideoStream | None = None
        for index in range(len(self._copier.source.streams)):
            if index == self._info.stream_index:
                video = self._add_video()
            else:
                self._copier.add_stream(index)
        assert video is not None  # probe found it
        tags = self._true_tags(kept_tags(self._copier.source.metadata))
        self._container.metadata.update(tags)
        name = self._container.format.name
        if name in ISO_FORMATS:
            # Apple's and Android's own names of tags have a place of their own, where the usual ones go with them then,
            # and where there is none for covers.
            covers = name != "mov" and any(map(is_cover, self._copier.source.streams))
            apart = any("." in tag for tag in tags) and not covers
            self._movflags += "+use_metadata_tags" * apart
            lost = lost_tags(tags, name, {"movflags": "use_metadata_tags"} if apart else {})
            if lost:
                self.notes.append(f"left out, since {name} does not hold them: the tags {', '.join(lost)}")
        return video

    def _add_video(self) -> VideoStream:
        stream = add_encoded(self._container, self._plan.codec, self._rate, self.output)
        configure(stream.codec_context, self._info, self._rate, self._plan, self._threads)
        source = self._copier.source.streams[self._info.stream_index]
        if source.metadata.get("alpha_mode") == "1":  # which is in a stream of its own, that no decoder here reads
            self.notes.append("transparency is left out")
        stream.metadata.update(self._true_tags(kept_tags(stream_tags(source), encoded_anew=True)))
        stream.disposition = source.disposition
        stream.set_display_matrix(self._info.display_matrix)
        return stream

    def _true_tags(self, tags: dict[str, str]) -> dict[str, str]:
        """Tags without a time code that the output's rate does not have, at which MP4's muxer fails or drops it."""
        name = self._container.format.name
        if "timecode" not in tags or name not in ISO_FORMATS or holds_time_code(tags["timecode"], name, self._rate):
            return tags
        rate = format_rate(self._rate)
        self.notes.append(
            f"left out, since there is none at {rate} frames per second: the time code {tags['timecode']}"
        )
        return {key: value for key, value in tags.items() if key != "timecode"}

    def _start(self, time: Fraction) -> None:
        """Write the header: the first frame's time decides on the time base."""
        self._first_time = time
        self._offset = time - self._copier.origin
        ticks = lcm((1 / self._rate).denominator, self._offset.denominator)
        if ticks > _FINEST_TIME_BASE:
            # The offset against the sound is no sum of ticks that could be stored: the nearest one will do.
            ticks = (1 / self._rate).denominator
            while ticks < _COARSEST_TIMESCALE:
                ticks *= 2
            self._offset = Fraction(round(self._offset * ticks), ticks)
        self._time_base = Fraction(1, ticks)
        name = self._container.format.name
        if name in ISO_FORMATS:
            while ticks < _COARSEST_TIMESCALE:
                ticks *= 2
            # The movie's own timescale is what the start offsets and durations of all tracks are stored in.
            self._container.container_options.update(
                video_track_timescale=str(ticks), movie_timescale=str(ticks), movflags=self._movflags
            )
        elif name in _MILLISECOND_FORMATS and (1000 / self._rate).denominator != 1:
            self.notes.append(f"{name} stores times in whole milliseconds; .mp4 and .mov store them exactly")
        self._stream.time_base = self._time_base
        self._container.start_encoding()

    def _mux(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            # The encoder counts frames; move its packets to where the first frame lies in the output.
            unit = packet.time_base
            if packet.pts is not None:
                packet.pts = self._ticks(packet.pts * unit)
            if packet.dts is not None:
                packet.dts = self._ticks(packet.dts * unit)
            packet.duration = int((packet.duration or 1) * unit / self._time_base)
            packet.time_base = self._time_base
            dts = packet.dts
            self._container.mux(packet)
            if dts is not None:
                self._copier.copy_until(dts * self._time_base)

    def _ticks(self, time: Fraction) -> int:
        return int((time + self._offset) / self._time_base)

    def _frame(self, planes: Sequence[np.ndarray]) -> VideoFrame:
        """A frame in the encoder's pixel format."""
        info, coded = self._info, self._plan.colour
        layout, planes = _with_or_without_chroma(info.layout, planes, VideoFormat(self._plan.pix_fmt))
        frame = VideoFrame(info.width, info.height, layout.name)
        for number, (plane, source) in enumerate(zip(frame.planes, planes, strict=True)):
            rows, columns = layout.plane_size(number, info.width, info.height)
            target = np.frombuffer(memoryview(plane), source.dtype).reshape(
                -1, plane.line_size // source.dtype.itemsize
            )
            target[:rows, :columns] = source
        tag(frame, info.colour)
        if self._plan.pix_fmt != layout.name or coded.range != info.colour.range:
            own, other = (
                ColorRange.JPEG if tags.range == RANGE_FULL else ColorRange.MPEG for tags in (info.colour, coded)
            )
            matrix = None  # the frame's own
            if info.colour.matrix == MATRIX_UNSPECIFIED:
                matrix = Colorspace.ITU709 if info.height >= HD_LINES else Colorspace.ITU601
            frame = frame.reformat(
                format=self._plan.pix_fmt,
                src_colorspace=matrix,
                dst_colorspace=matrix,
                src_color_range=own,
                dst_color_range=other,
            )
            tag(frame, coded)
        return frame

    def _note_left_out(self) -> None:
        source = self._copier.source
        video = self._info.stream_index
        kinds = {stream.type for stream in source.streams if stream.index != video and not is_timeless(stream)}
        left_out = sorted(kinds) + (["chapters"] if source.chapters() else [])
        if left_out:
            self.notes.append(f"left out, since they keep the source's speed: {', '.join(left_out)}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what FFmpeg and the system report into an error for the user."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EncodeError(
                f"writing {self.output} failed: {reason}", "Check the free space, or try another --codec."
            ) from error


def _with_or_without_chroma(
    layout: PixelLayout, planes: Sequence[np.ndarray], target: VideoFormat
) -> tuple[PixelLayout, Sequence[np.ndarray]]:
    """Planes as they are to be converted to the target, and their layout. Grey is not left to libswscale, which takes
    it for full range whatever its tags say: it gains planes without colour, or loses those that it has."""
    if is_grey(target) == (layout.planes == 1):
        return layout, planes
    if is_grey(target):
        return layout_of("gray" if layout.bits == 8 else f"gray{layout.bits}le"), planes[:1]
    layout = layout_of("yuv420p" if layout.bits == 8 else f"yuv420p{layout.bits}le")
    rows, columns = layout.plane_size(1, planes[0].shape[1], planes[0].shape[0])
    return layout, [planes[0], *[np.full((rows, columns), 1 << (layout.bits - 1), planes[0].dtype)] * 2]


def check_output(output: Path, info: MediaInfo, rate: Fraction, options: EncodeOptions) -> None:
    """Find out whether a ``FrameWriter`` could begin to write this output, but make no file. Raises UgspError."""
    plan = plan_encoder(output, info, rate, options)
    with open_container(Memory(output), output) as container:
        add_encoded(container, plan.codec, rate, output)
