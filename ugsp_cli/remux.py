"""Copying what is not the video: the other streams packet by packet, chapters and tags."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ugsp_cli.media import MediaInfo, is_absurd, latest_time, open_input

__all__ = ["StreamCopier", "copy_chapters", "is_cover", "is_timeless", "kept_tags", "lost_tags", "stream_tags"]

# Tags that describe the file they stand in, not the work; muxers write their own.
_FILE_TAGS = {"compatible_brands", "encoder", "major_brand", "minor_version"}
_LANGUAGE = re.compile(r"-[a-z]{3}$")  # after the name of a tag
# What Matroska calls the files of covers, by FFmpeg's names of their codecs.
_PICTURES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
# Tags that describe encoded data and are wrong once it is encoded anew.
_DATA_TAGS = {"bps", "bps-eng", "duration", "duration-eng", "number_of_frames", "number_of_frames-eng"}
_DATA_TAGS |= {"number_of_bytes", "number_of_bytes-eng", "vendor_id", "alpha_mode"}


class StreamCopier:
    """Copies streams of the source into the output, as far ahead as the encoded video has come.

    Time stamps move by the same amount as the video's, so that nothing shifts against it.
    """

    notes: list[str]
    """Streams that the output cannot hold, and damage met on the way."""

    def __init__(self, info: MediaInfo, output: OutputContainer, copy_streams: bool) -> None:
        """copy_streams: False leaves out the streams that run in time with the source (not cover pictures or fonts)."""
        self.notes = []
        self.source: InputContainer = open_input(info.path)
        self._info = info
        self._output = output
        self._copy_streams = copy_streams
        self._outputs: dict[int, Stream] = {}  # output streams by the source's stream number
        self._last_dts: dict[int, int] = {}  # by the source's stream number, in its own time base
        self._packets: Iterator[Packet] | None = None
        self._waiting: Packet | None = None  # the one packet that was read but lies ahead of the video
        self._wanted = {index for index in range(len(self.source.streams)) if self._fits(index)}
        self.origin = self._origin()
        # Output time, seconds, after which no packet can truly lie; None where the source's duration is unknown.
        latest = latest_time(self.source)
        self._end = None if latest is None else latest - self.origin

    def add_stream(self, index: int) -> None:
        """Add the output stream for the source's stream `index`, if it is copied at all."""
        if index not in self._wanted:
            return
        template = self.source.streams[index]
        stream = self._add_copy(self._output, template)
        if not self._is_attached(self._output, template):
            self._outputs[index] = stream

    def copy_until(self, time: Fraction | None) -> None:
        """Copy the packets up to the output time `time`, seconds; None copies all that are left."""
        if self._packets is None:
            streams = [self.source.streams[index] for index in self._outputs]
            self._packets = self.source.demux(*streams) if streams else iter(())
        while True:
            packet = self._waiting or self._read()
            self._waiting = None
            if packet is None:
                return
            stamp = packet.dts if packet.dts is not None else packet.pts
            assert stamp is not None  # _read leaves out packets without time
            if time is not None and stamp * packet.time_base > time:
                self._waiting = packet
                return
            try:
                self._output.mux(packet)
            except av.InvalidDataError:
                # A filter of the muxer's (ADTS headers off, start codes to lengths) cannot read the packet.
                index = next(index for index, stream in self._outputs.items() if stream.index == packet.stream_index)
                self._note_once(f"damaged packets in {_describe(self.source.streams[index])} are left out")

    def close(self) -> None:
        self.source.close()

    def _read(self) -> Packet | None:
        """The next packet, ready for the output; None at the end."""
        assert self._packets is not None
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                return None
            except av.InvalidDataError:
                self.notes.append("the source is damaged: its other streams are copied only up to there")
                self._packets = iter(())
                return None
            if packet.size and self._prepare(packet):
                return packet

    def _prepare(self, packet: Packet) -> bool:
        """Move a packet to its output stream and time; False where it has no time to be placed at."""
        index = packet.stream_index
        source = self.source.streams[index]
        if is_timeless(source):
            packet.pts = packet.dts = 0
            packet.stream = self._outputs[index]
            return True
        if packet.pts is None and packet.dts is None:
            self._note_once(f"packets without time stamps in {_describe(source)} are left out")
            return False
        shift = round(self.origin / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
        packet.stream = self._outputs[index]
        return self._plausible(packet, index)

    def _plausible(self, packet: Packet, index: int) -> bool:
        """Leave out packets of damaged files whose times run backwards or lie beyond the end.

        A muxer refuses the first, and one of the second would keep all that follow from being copied.
        """
        stamp = packet.dts if packet.dts is not None else packet.pts
        assert stamp is not None  # seen to by the caller
        before = self._last_dts.get(index, 0) * packet.time_base
        too_late = is_absurd(stamp * packet.time_base, before, self._end)
        if too_late or (packet.dts is not None and packet.dts < self._last_dts.get(index, packet.dts)):
            self._note_once(f"packets with wrong times in {_describe(self.source.streams[index])} are left out")
            return False
        if packet.dts is not None:
            self._last_dts[index] = packet.dts
        return True

    def _origin(self) -> Fraction:
        """The source time, seconds, that becomes 0 in the output: where the first of its streams starts."""
        starts = [self._info.start]
        for index in self._wanted:
            stream = self.source.streams[index]
            # Sparse streams and pictures say nothing of where the file starts.
            if (
                stream.type in ("audio", "video")
                and not is_timeless(stream)
                and stream.start_time is not None
                and stream.time_base
            ):
                starts.append(stream.start_time * stream.time_base)
        return min(starts)

    def _fits(self, index: int) -> bool:
        """Whether a stream is to be copied and the output's container holds it; notes what it does not hold."""
        template = self.source.streams[index]
        if index == self._info.stream_index or self._is_remade(template):
            return False
        if not (self._copy_streams or is_timeless(template)):
            return False
        # The rules of which container holds what are known to FFmpeg's muxers only: ask one, with a file in memory.
        try:
            if is_cover(template) and self._output.format.name == "mov":
                raise ValueError("FFmpeg's muxer takes it and drops it")
            with av.open(io.BytesIO(), "w", format=self._output.format.name) as trial:
                copy = self._add_copy(trial, template)
                if self._is_attached(trial, template):
                    trial.add_stream("ffv1", rate=25)  # no file consists of attachments only
                trial.start_encoding()
                if template.type == "data":
                    trial.mux(_empty_packet(copy))  # of these some are refused only at the end
        except (av.FFmpegError, ValueError, LookupError, OSError):
            self.notes.append(f"left out, since {self._output.format.name} does not hold it: {_describe(template)}")
            return False
        return True

    def _is_remade(self, template: Stream) -> bool:
        """MP4 keeps chapter titles and time codes in streams. Chapters are copied as such, and time codes are a tag of
        the video's as well; muxers make the streams from these."""
        if template.type != "data" or "mov" not in self.source.format.name.split(","):
            return False
        of_chapters = bool(self.source.chapters()) and template.discard == Discard.all  # as FFmpeg marks it
        return of_chapters or "timecode" in template.metadata

    def _add_copy(self, output: OutputContainer, template: Stream) -> Stream:
        if self._is_attached(output, template):
            if isinstance(template, AttachmentStream):
                stream: Stream = output.add_attachment(
                    template.name or "attachment", template.mimetype or "", template.data
                )
            else:
                name, kind = _PICTURES.get(template.codec_context.codec.canonical_name, ("cover", ""))
                name, kind = template.metadata.get("filename", name), template.metadata.get("mimetype", kind)
                stream = output.add_attachment(name, kind, self._picture(template.index))
            stream.metadata.update(template.metadata)
            return stream
        stream = output.add_stream_from_template(template, opaque=True)
        stream.metadata.update(kept_tags(stream_tags(template)))
        stream.disposition = template.disposition
        return stream

    @staticmethod
    def _is_attached(output: OutputContainer, template: Stream) -> bool:
        """Whether a stream becomes an attached file, as which Matroska has its cover pictures too."""
        in_matroska = output.format.name in ("matroska", "webm")
        return isinstance(template, AttachmentStream) or (is_cover(template) and in_matroska)

    def _picture(self, index: int) -> bytes:
        """The file of a cover picture."""
        with open_input(self._info.path) as source:
            return bytes(next(packet for packet in source.demux(source.streams[index]) if packet.size))

    def _note_once(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def is_timeless(stream: Stream) -> bool:
    """Whether a stream has no clock: attached files and cover pictures."""
    return stream.type == "attachment" or is_cover(stream)


def is_cover(stream: Stream) -> bool:
    """Whether a stream is a cover picture."""
    return bool(stream.disposition & Disposition.attached_pic)


def stream_tags(stream: Stream) -> dict[str, str]:
    """A stream's own tags; a track's title, which MP4's demuxer calls its name, by the name that muxers know."""
    tags = dict(stream.metadata)
    if "name" in tags and "title" not in tags:
        tags["title"] = tags.pop("name")
    return tags


def copy_chapters(source: InputContainer, output: OutputContainer, origin: Fraction) -> None:
    """Copy the chapters, moved by `origin` seconds like everything else."""
    chapters = source.chapters()
    for chapter in chapters:
        shift = round(origin / (chapter["time_base"] or Fraction(1, av.time_base)))
        chapter["start"] = max(0, chapter["start"] - shift)
        chapter["end"] = max(chapter["start"], chapter["end"] - shift)
    if chapters:
        output.set_chapters(chapters)


def kept_tags(tags: dict[str, str], encoded_anew: bool = False) -> dict[str, str]:
    """The tags that stay true in another file (and, where asked, for data that was encoded anew)."""
    dropped = _FILE_TAGS | _DATA_TAGS if encoded_anew else _FILE_TAGS
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in dropped and not (encoded_anew and key.upper().startswith("_STATISTICS"))
    }


def lost_tags(tags: dict[str, str], muxer: str, options: dict[str, str]) -> list[str]:
    """Which of a file's tags, but for a time code, a muxer with these options does not write."""
    if not tags:
        return []
    kept = _written(tags, muxer, Fraction(25), options)
    if kept is None:
        return []
    # What FFmpeg found of one language it gives by its plain name too.
    plain = {name: _LANGUAGE.sub("", name) for name in tags}
    again = {name for name, short in plain.items() if short != name and tags.get(short) == tags[name]}
    return sorted(name for name in set(tags) - again if name.lower() not in kept and name.lower() != "timecode")


def holds_time_code(time_code: str, muxer: str, rate: Fraction) -> bool:
    """Whether a muxer writes a time code beside a video of so many frames per second: frames are counted in it, of a
    few rates only where some counts are left out."""
    kept = _written({"timecode": time_code}, muxer, rate, {})
    return kept is not None and "timecode" in kept


def _written(tags: dict[str, str], muxer: str, rate: Fraction, options: dict[str, str]) -> set[str] | None:
    """Ask a muxer what it writes of a file's tags, with a file in memory: their names in small letters, also of those
    that the video has then; None where it does not do it."""
    trial = io.BytesIO()
    try:
        with av.open(trial, "w", format=muxer, container_options=options, metadata_errors="surrogateescape") as output:
            stream = output.add_stream("mjpeg", rate=rate)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
            output.metadata.update(tags)
            output.mux(stream.encode(VideoFrame(16, 16, "yuvj420p")))
            output.mux(stream.encode(None))
        trial.seek(0)
        with av.open(trial, metadata_errors="surrogateescape") as written:
            return {name.lower() for name in (*written.metadata, *written.streams.video[0].metadata)}
    except (av.FFmpegError, ValueError):
        return None


def _empty_packet(stream: Stream) -> Packet:
    packet = Packet(4)
    packet.stream = stream
    packet.time_base = stream.time_base or Fraction(1, 1000)
    packet.pts = packet.dts = 0
    return packet


def _describe(stream: Stream) -> str:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else stream.name
    return f"stream {stream.index} ({stream.type}{', ' + codec if codec else ''})"
