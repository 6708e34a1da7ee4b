"""Which encoder, which pixel format and which options: settled before any work, by opening the encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
from av.codec.codec import find_best_pix_fmt_of_list
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from ugsp_cli import hdr
from ugsp_cli.errors import UgspError, UsageError
from ugsp_cli.media import LARGE, MediaInfo
from ugsp_cli.muxers import Memory, add_encoded, open_container
from ugsp_cli.pixels import MATRIX_RGB, RANGE_FULL, RANGE_LIMITED, ColourTags, PixelLayout, colour_of, is_grey

__all__ = [
    "EncodeOptions",
    "EncoderPlan",
    "card_encoder",
    "check_encoder",
    "configure",
    "plan_encoder",
    "usable_encoders",
]

# Constant quality that is hard to tell from the source, on each encoder's own scale. Those that are not told any aim at
# a bit rate of FFmpeg's, 2 Mbit/s on graphics cards and 0.2 for MPEG-4, whatever the size of the picture.
_DEFAULT_QUALITY = {
    "libx264": 18.0,
    "libx265": 20.0,
    "libsvtav1": 25.0,
    "libvpx-vp9": 24.0,
    "mpeg4": 2.0,
    "h264_nvenc": 19.0,
    "hevc_nvenc": 21.0,
    "av1_nvenc": 24.0,
    "h264_qsv": 19.0,
    "hevc_qsv": 21.0,
    "av1_qsv": 24.0,
    "h264_amf": 19.0,
    "hevc_amf": 21.0,
}

# Options by which a user says how much is to be spent.
_SPENDS = {"b", "crf", "qp", "cq", "rc", "global_quality", "qp_i", "qp_p", "qp_b", "qmin", "qmax", "flags"}

# The encoders that are offered when one is not usable, in this order.
_KNOWN_ENCODERS = (
    *("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1", "prores_ks", "dnxhd", "mpeg4"),
    *("h264_nvenc", "hevc_nvenc", "av1_nvenc", "h264_qsv", "hevc_qsv", "av1_qsv", "h264_amf", "hevc_amf"),
    *("h264_vaapi", "hevc_vaapi", "h264_videotoolbox", "hevc_videotoolbox"),
)

_QUIET_X265 = "log-level=none"  # x265 writes to stderr on its own else

# What trial openings need: DNxHD's default profile takes only a few sizes and bit rates.
_TRIAL_OPTIONS = {"dnxhd": {"profile": "dnxhr_hq"}, "libx265": {"x265-params": _QUIET_X265}}

_TRIAL_PIXELS = 1920 * 1088  # of a frame that is encoded only to see what becomes of it

# An encoder that looks far ahead holds all those frames: libx264 took 1.3 GB at 3840x2160 and 5.2 GB at 7680x4320, but
# 2.1 GB there with 8 frames ahead (60 frames, one thread).
_FEWER_AHEAD = {"libx264": ("rc-lookahead", "8")}

# The option that limits the threads of encoders that start their own, not FFmpeg's.
_THREAD_PARAMETERS = {"libx265": ("x265-params", "pools"), "libsvtav1": ("svtav1-params", "lp")}


@dataclass(frozen=True)
class EncodeOptions:
    """What the user asked of the encoder."""

    codec: str | None = None
    """FFmpeg's name of the encoder; None for the container's usual one."""
    crf: float | None = None
    """Constant quality on the encoder's own scale; None for one that is hard to tell from the source."""
    preset: str | None = None
    """The encoder's preset; None for its default."""
    pix_fmt: str | None = None
    """Pixel format; None for the source's, or the nearest one that the encoder takes."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of the encoder, passed on as they are."""


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder that was seen to open with these settings."""

    codec: str
    """FFmpeg's name of the encoder."""
    pix_fmt: str
    """The pixel format that it is given."""
    colour: ColourTags
    """What the numbers in frames of that format mean."""
    options: dict[str, str]
    """All of its options."""
    notes: tuple[str, ...]
    """What differs from the source."""


def check_encoder(name: str) -> None:
    """Raise UsageError, with the usable ones as its hint, unless the video encoder exists and opens on this machine."""
    if not _opens_at_all(_find(name).name):
        raise UsageError(f"the encoder '{name}' cannot be used on this machine", _usable_hint())


def plan_encoder(output: Path, info: MediaInfo, rate: Fraction, options: EncodeOptions) -> EncoderPlan:
    """Settle on an encoder and its settings for this output. Raises UsageError."""
    codec = _find(options.codec or _usual_encoder(output, info.layout))
    notes: list[str] = []
    settings = _settings(codec.name, info, options, notes)
    candidates = _pixel_formats(codec, info, options)
    reason = ""
    for pix_fmt in candidates:
        context = _create(codec.name)
        plan = EncoderPlan(codec.name, pix_fmt, _coded_colour(pix_fmt, info.colour), settings, ())
        configure(context, info, rate, plan, threads=1)
        failure = _open(context)
        if failure is None:
            if pix_fmt != info.layout.name:
                notes.append(_pixel_format_note(codec.name, info, pix_fmt))
            if _has_alpha(info.pix_fmt):
                notes.append("transparency is left out")
            rgb = VideoFormat(pix_fmt).is_rgb
            if info.colour.range == RANGE_FULL and not rgb and not _tells_range(output, info, rate, plan):
                plan = replace(plan, colour=replace(plan.colour, range=RANGE_LIMITED))
                notes.append(f"{codec.name} in {output.suffix} cannot tell full range: converted to limited range")
            return replace(plan, notes=tuple(notes))
        reason = reason or failure
    check_encoder(codec.name)
    picture = f"{info.width}x{info.height} {candidates[0]}"
    raise UsageError(
        f"the encoder '{codec.name}' does not take {picture} with these options: {reason}",
        "Change --codec, --pix-fmt, --preset or --encoder-option.",
    )


def configure(
    context: VideoCodecContext,
    info: MediaInfo,
    rate: Fraction,
    plan: EncoderPlan,
    threads: int | None,
) -> None:
    """Prepare an encoder that is not open yet. Time stamps will count frames, in units of 1 / rate."""
    context.width, context.height = info.width, info.height
    context.pix_fmt = plan.pix_fmt
    context.framerate = rate
    context.time_base = 1 / rate
    context.sample_aspect_ratio = info.sample_aspect_ratio or Fraction(0, 1)
    tag(context, plan.colour)
    options = dict(plan.options)
    if threads:
        context.thread_count = threads
        if context.codec.name in _THREAD_PARAMETERS:
            key, parameter = _THREAD_PARAMETERS[context.codec.name]
            options[key] = ":".join(filter(None, [f"{parameter}={threads}", options.get(key)]))
    context.options = options


def _coded_colour(pix_fmt: str, colour: ColourTags) -> ColourTags:
    """The colour tags of the source's frames once they are in the format that an encoder is given."""
    return replace(colour, matrix=MATRIX_RGB, range=RANGE_FULL) if VideoFormat(pix_fmt).is_rgb else colour


def _tells_range(output: Path, info: MediaInfo, rate: Fraction, plan: EncoderPlan) -> bool:
    """Whether who reads the output will know that its luma uses all codes: some codecs have no room for that, others
    leave it to the container. One frame is written in memory, and read. Raises UgspError as ``muxers`` do."""
    if info.width * info.height > _TRIAL_PIXELS:  # of 8K it would take seconds, and gigabytes
        info = replace(info, width=1280 + info.width % 2, height=720 + info.height % 2)
    memory = Memory(output)
    try:
        with open_container(memory, output) as container:
            stream = add_encoded(container, plan.codec, rate, output)
            configure(stream.codec_context, info, rate, plan, threads=1)
            frame = av.VideoFrame(info.width, info.height, plan.pix_fmt)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            tag(frame, plan.colour)
            frame.pts, frame.time_base = 0, 1 / rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        memory.seek(0)
        with av.open(memory, "r") as written:
            return colour_of(next(written.decode(video=0))).range == RANGE_FULL
    except (av.FFmpegError, StopIteration):
        return True  # what is wrong shows when the output is written


def tag(target: VideoCodecContext | av.VideoFrame, colour: ColourTags) -> None:
    """Put the colour tags on a frame or an encoder."""
    target.colorspace = colour.matrix
    target.color_primaries = colour.primaries
    target.color_trc = colour.transfer
    target.color_range = colour.range


def _usual_encoder(output: Path, layout: PixelLayout) -> str:
    if output.suffix.lower() == ".webm":
        # WebM holds VP8, VP9 and AV1; of the encoders here only AV1's takes more than 8 bits.
        return "libvpx-vp9" if layout.bits == 8 else "libsvtav1"
    return "libx264"


def _find(name: str) -> av.Codec:
    try:
        codec = av.Codec(name, "w")
    except (av.FFmpegError, ValueError) as error:
        raise UsageError(f"there is no encoder '{name}'", _usable_hint()) from error
    if codec.type != "video":
        raise UsageError(f"'{name}' is not a video encoder", _usable_hint())
    return codec


def _create(name: str) -> VideoCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)  # _find saw to it
    return context


def _open(context: VideoCodecContext) -> str | None:
    """Open an encoder; the reason in words where that fails."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes a page about itself to stderr else
    try:
        context.open()
    except (av.FFmpegError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _opens_at_all(name: str) -> bool:
    """Encoders of graphics cards exist by name everywhere; only opening one tells whether the card and driver do."""
    formats = av.Codec(name, "w").video_formats or []
    software = [pixel_format.name for pixel_format in formats if pixel_format.components]
    context = _create(name)
    context.width, context.height = 1280, 720  # hardware takes no tiny pictures
    context.pix_fmt = "yuv420p" if "yuv420p" in software or not software else software[0]
    context.framerate = Fraction(25)
    context.time_base = Fraction(1, 25)
    context.thread_count = 1
    context.options = _TRIAL_OPTIONS.get(name, {})
    return _open(context) is None


def usable_encoders() -> list[str]:
    """The well-known video encoders that open on this machine."""
    return [name for name in _KNOWN_ENCODERS if name in av.codecs_available and _opens_at_all(name)]


def card_encoder(output: Path, bits: int) -> str | None:
    """An NVIDIA card's encoder for so many bits that opens on this machine, where the output may hold what it makes."""
    name = "h264_nvenc" if bits == 8 else "hevc_nvenc"
    fits = output.suffix.lower() != ".webm" and name in av.codecs_available
    return name if fits and _opens_at_all(name) else None


def _usable_hint() -> str:
    return f"Usable here: {', '.join(usable_encoders())}."


def _settings(codec: str, info: MediaInfo, options: EncodeOptions, notes: list[str]) -> dict[str, str]:
    """The encoder's options by name. Raises UsageError for those that it does not have."""
    settings: dict[str, str] = {}
    quality = options.crf
    if quality is None and not _SPENDS & options.options.keys():
        quality = _DEFAULT_QUALITY.get(codec)
    if quality is not None:
        settings |= _constant_quality(codec, quality)
    if options.preset is not None:
        settings["preset"] = options.preset
    if codec in _FEWER_AHEAD and info.width * info.height > LARGE:
        option, frames = _FEWER_AHEAD[codec]
        settings[option] = frames
        if option not in options.options:
            notes.append(f"{codec} looks {frames} frames ahead, to save memory (--encoder-option {option}=N for more)")
    settings.update(options.options)
    known = _create(codec).supported_options
    names = {option.name for option in (*known.generic, *known.private)}
    for name in settings:
        if name not in names:
            flag = f"--{name}" if name in ("crf", "preset") and name not in options.options else f"option '{name}'"
            raise UsageError(f"the encoder '{codec}' has no {flag}", f"`ffmpeg -h encoder={codec}` lists what it has.")
    if codec == "libx265":
        settings["x265-params"] = ":".join(filter(None, [_QUIET_X265, settings.get("x265-params")]))
    if info.hdr is not None:
        written = hdr.encoder_parameters(codec, info.hdr)
        if written is None:
            notes.append(f"HDR10 metadata is left out: it cannot be given to {codec}")
        else:
            key, value = written
            settings[key] = ":".join(filter(None, [value, settings.get(key)]))
    return settings


def _constant_quality(codec: str, quality: float) -> dict[str, str]:
    """The options by which an encoder keeps its quality the same, on its own scale."""
    value = f"{quality:g}"
    if codec.endswith("_nvenc"):
        return {"rc": "vbr", "cq": value, "b": "0"}
    if codec.endswith("_qsv"):
        return {"global_quality": f"{quality:.0f}"}
    if codec.endswith("_amf"):
        kinds = ("qp_i", "qp_p", "qp_b") if codec == "h264_amf" else ("qp_i", "qp_p")
        return {"rc": "cqp", **dict.fromkeys(kinds, f"{quality:.0f}")}
    if codec == "mpeg4":
        return dict.fromkeys(("qmin", "qmax"), f"{quality:.0f}")
    return {"crf": value}


def _pixel_formats(codec: av.Codec, info: MediaInfo, options: EncodeOptions) -> list[str]:
    """The formats to try, best first."""
    offered = [pixel_format.name for pixel_format in codec.video_formats or []]
    if options.pix_fmt is not None:
        try:
            VideoFormat(options.pix_fmt)
        except ValueError as error:
            raise UsageError(f"there is no pixel format '{options.pix_fmt}'", _offer_hint(codec, offered)) from error
        if offered and options.pix_fmt not in offered:
            raise UsageError(f"'{codec.name}' does not take {options.pix_fmt}", _offer_hint(codec, offered))
        return [options.pix_fmt]
    if not offered:
        return [info.layout.name]
    plain = [name for name in offered if _is_plain(name) and is_grey(VideoFormat(name)) <= (info.layout.planes == 1)]
    usable = plain or [name for name in offered if _is_coloured(name)] or offered
    suffix = "" if info.layout.bits == 8 else f"{info.layout.bits}le"
    wanted = info.layout.name if info.layout.planes > 1 else f"yuv420p{suffix}"  # which all players know
    best, _ = find_best_pix_fmt_of_list(usable, wanted)
    if best is None:
        raise UgspError(f"'{codec.name}' takes no pixel format that frames could be converted to")
    formats = [info.layout.name if info.layout.name in offered else best.name]
    # Some encoders take an odd size only where chroma is not subsampled in that direction.
    finer = [f"{name}{suffix}" for name in ("yuv422p", "yuv444p")]
    odd = (info.width % 2, info.height % 2) != (0, 0)
    return formats + [name for name in finer if odd and name in usable and name not in formats]


def _is_plain(name: str) -> bool:
    """Whether a format is planar or semi-planar YUV or grey without alpha, in the range that its frames say."""
    pixel_format = VideoFormat(name)
    components = pixel_format.components
    other = pixel_format.is_rgb or pixel_format.has_palette or name.startswith("yuvj")
    return bool(components) and not (other or any(component.is_alpha for component in components))


def _is_coloured(name: str) -> bool:
    """Whether a format holds any colour, each pixel by itself, without alpha."""
    pixel_format = VideoFormat(name)
    alpha = any(component.is_alpha for component in pixel_format.components)
    return not (alpha or pixel_format.has_palette or is_grey(pixel_format))


def _has_alpha(name: str) -> bool:
    pixel_format = VideoFormat(name)
    return not pixel_format.has_palette and any(component.is_alpha for component in pixel_format.components)


def _pixel_format_note(codec: str, info: MediaInfo, pix_fmt: str) -> str:
    bits = max((component.bits for component in VideoFormat(pix_fmt).components), default=info.layout.bits)
    loss = f" ({info.layout.bits} bits become {bits})" if bits < info.layout.bits else ""
    return f"{codec} is given {pix_fmt} instead of {info.layout.name}{loss}"


def _offer_hint(codec: av.Codec, offered: list[str]) -> str:
    return f"{codec.name} takes: {', '.join(offered)}." if offered else ""
