"""FFmpeg's minterpolate with its best settings, through PyAV: no ffmpeg program is needed.

    python benchmarks/minterpolate.py IN OUT --fps 60 [--codec libx264] [--crf 18] [--preset medium]

converts a file as ``ffmpeg -i IN -vf minterpolate=... OUT`` does, and prints as JSON how many frames were made (those
whose instants are no source frame's) and the seconds from the first packet read to the last one written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

OPTIONS = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"


def minterpolate_graph(
    width: int, height: int, pix_fmt: str, time_base: Fraction, rate: Fraction, more: str = ""
) -> av.filter.Graph:
    """Frames in, frames at ``rate`` out. The filter takes 8 bits only, so others are converted. more: options."""
    graph = av.filter.Graph()
    filters = [graph.add_buffer(width=width, height=height, format=av.VideoFormat(pix_fmt), time_base=time_base)]
    if pix_fmt.endswith("10le"):
        filters.append(graph.add("format", pix_fmt.removesuffix("10le")))
    options = ":".join(part for part in (f"fps={rate}", OPTIONS, more) if part)
    filters += [graph.add("minterpolate", options), graph.add("buffersink")]
    for left, right in pairwise(filters):
        left.link_to(right)
    graph.configure()
    return graph


def pulled(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    """What is ready."""
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame


def convert(source: Path, target: Path, rate: Fraction, codec: str, options: dict[str, str]) -> int:
    """Decode, interpolate, encode; the number of frames that were made."""
    given: set[Fraction] = set()
    shown: list[Fraction] = []
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        context = stream.codec_context
        assert context.pix_fmt is not None
        assert stream.time_base is not None
        graph = minterpolate_graph(context.width, context.height, context.pix_fmt, stream.time_base, rate)
        video = output.add_stream(codec, rate=rate, options=options)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = context.width, context.height, context.pix_fmt.removesuffix("10le")

        def write() -> None:
            for frame in pulled(graph):
                assert frame.pts is not None
                assert frame.time_base is not None
                shown.append(frame.pts * frame.time_base)
                frame.pict_type = av.video.frame.PictureType.NONE  # the encoder decides, not the source's encoder
                output.mux(video.encode(frame))

        for frame in container.decode(stream):
            assert frame.pts is not None
            given.add(frame.pts * stream.time_base)
            graph.push(frame)
            write()
        graph.push(None)
        write()
        output.mux(video.encode(None))
    return sum(instant not in given for instant in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fps", type=Fraction, default=Fraction(60))
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--crf", default="18")
    parser.add_argument("--preset", default="medium")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    options = {"crf": arguments.crf, "preset": arguments.preset}
    made = convert(arguments.input, arguments.output, arguments.fps, arguments.codec, options)
    print(json.dumps({"made": made, "seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
