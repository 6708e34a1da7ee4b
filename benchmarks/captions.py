"""Captions that stand still before what moves: PSNR of restored frames where they are, of the network and the classics.

    python benchmarks/captions.py CLIPS_DIR [--weights FILE] [--frames 13] [--crf 18] [--json FILE] [--figure FILE]

Two lines of white letters with dark edges and a red word in a corner are drawn over the first frames of every clip,
which is then coded by libx264. Every second frame is removed and restored, as by ``quality.py``'s protocol half. Pixels
count within two pixels of the letters. The figure shows the frame in which DIS errs most of the clips that ``--shown``
names: the true one, the network, DIS and minterpolate, one below the other. Needs ``pip install 'ugsp[train]'``: OpenCV
draws.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fractions import Fraction
from itertools import islice, product
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from quality import Picture, Task, picture, run_blend, run_dis, run_minterpolate, run_network
from rich.console import Console
from rich.table import Table

from ugsp_cli.decode import FrameReader
from ugsp_cli.engine import EngineOptions, Interpolator

LINES = (("Where have you been all day?", 0.83), ("- Out by the lake, counting boats.", 0.93))
RATE = 24
LOOKED_AT = slice(0.76, 0.98)
"""Rows of the pictures that the figure shows, as shares of the height."""


def captioned(frame: Picture) -> Picture:
    """The frame with letters over it."""
    frame = np.ascontiguousarray(frame)
    height, width = frame.shape[:2]
    size = height / 560
    edge = max(1, round(2 * size))

    def write(text: str, x: float, y: float, colour: tuple[int, int, int]) -> None:
        at = round(x), round(y)
        cv2.putText(frame, text, at, cv2.FONT_HERSHEY_SIMPLEX, 1.1 * size, colour, edge, cv2.LINE_AA)

    for text, row in LINES:
        for down, across in product((-edge, 0, edge), repeat=2):
            write(text, 0.06 * width + across, row * height + down, (8, 8, 8))
        write(text, 0.06 * width, row * height, (250, 250, 250))
    write("LIVE", 0.8 * width, 0.12 * height, (215, 30, 30))
    return frame


def letters(height: int, width: int) -> NDArray[np.bool_]:
    """Pixels within two pixels of the letters, [H, W]."""
    blank = np.full((height, width, 3), 128, np.uint8)
    drawn = (captioned(blank.copy()) != blank).any(-1).astype(np.uint8)
    return cv2.dilate(drawn, np.ones((5, 5), np.uint8)) > 0


def task_of(clip: Path, frames: int, crf: int, folder: Path) -> Task:
    """Every second frame of the captioned, coded clip, and those between."""
    with FrameReader(clip, threads=1) as reader:
        pictures = [captioned(picture(frame.planes, frame)) for frame in islice(reader, frames)]
    height, width = (side - side % 2 for side in pictures[0].shape[:2])
    coded = folder / f"{clip.stem}.mp4"
    with av.open(str(coded), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for one in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(one[:height, :width], format="rgb24")))
        output.mux(stream.encode(None))
    with FrameReader(coded, threads=1) as reader:
        decoded = list(reader)
    wanted = [(index, Fraction(1, 2), frame) for index, frame in enumerate(decoded[1:-1:2])]
    return Task(clip.stem, decoded[::2], wanted, Fraction(RATE, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--frames", type=int, default=13, help="of each clip, an odd number")
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--shown", default="davis-dance-twirl,davis-goat", help="clips in the figure")
    arguments = parser.parse_args()
    engine = Interpolator(EngineOptions(arguments.weights))
    methods = {
        "ugsp": lambda task: run_network(engine, task)[0],
        "dis": run_dis,
        "minterpolate": run_minterpolate,
        "blend": run_blend,
    }
    results: dict[str, dict[str, float]] = {}
    shown: list[Picture] = []
    for clip in sorted(arguments.folder.iterdir()):
        if clip.suffix not in (".mp4", ".mkv", ".webm", ".mov"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            task = task_of(clip, arguments.frames, arguments.crf, Path(folder))
        truths = [picture(like.planes, like) for _, _, like in task.wanted]
        height, width = truths[0].shape[:2]
        where = letters(height, width)
        results[clip.stem] = {}
        frames, worst = [truths], 0
        for name, method in methods.items():
            made = method(task)
            frames.append(made)
            errors = [
                np.square(one[where].astype(np.float64) - truth[where]).mean()
                for one, truth in zip(made, truths, strict=True)
            ]
            if name == "dis":
                worst = int(np.argmax(errors))
            results[clip.stem][name] = float(np.mean([10 * np.log10(255**2 / max(error, 1e-6)) for error in errors]))
        print(clip.stem, {name: round(value, 2) for name, value in results[clip.stem].items()}, flush=True)
        if clip.stem in arguments.shown.split(","):
            rows = slice(int(LOOKED_AT.start * height), int(LOOKED_AT.stop * height))
            strip = np.concatenate([of_method[worst][rows] for of_method in frames[:4]])
            shown.append(cv2.resize(strip, (760, round(strip.shape[0] * 760 / width)), interpolation=cv2.INTER_AREA))
    means = {name: float(np.mean([row[name] for row in results.values()])) for name in methods}
    table = Table("clip", *methods, title="PSNR in dB of restored frames where captions are")
    for clip_name, row in [*results.items(), ("mean", means)]:
        table.add_row(clip_name, *(f"{row[name]:.2f}" for name in methods))
    Console(width=100).print(table)
    if arguments.figure and shown:
        cv2.imwrite(str(arguments.figure), np.concatenate(shown)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if arguments.json:
        record = {"frames": arguments.frames, "crf": arguments.crf, "mean": means, "clips": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
