"""Miniature data sets made in code, one builder per layout; each returns the samples that must be found in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.clips import Clip, make_clip
from ugsp_cli.decode import FrameReader
from ugsp_cli.pictures import encode_png, from_frame
from ugsp_net.metrics import Picture

HALF = Fraction(1, 2)
SIZE = (40, 24)  # width and height


@dataclass(frozen=True)
class Expected:
    """A sample as it must be found."""

    split: str
    name: str
    t: Fraction
    left: Picture
    truth: Picture
    right: Picture
    before: Picture | None = None
    after: Picture | None = None


def picture(number: float, size: tuple[int, int] = SIZE) -> Picture:
    """A pattern that moves with the number."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = [np.sin((x - number) / (3 + channel)) * np.cos((y + number / 2) / 4) for channel in range(3)]
    made: Picture = (128 + 100 * np.stack(waves, -1)).astype(np.uint8)
    return made


def put(path: Path, number: float, size: tuple[int, int] = SIZE) -> Picture:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture(number, size)))
    return picture(number, size)


def vimeo90k(root: Path) -> list[Expected]:
    names = ("00001/0389", "00002/0010")
    (root / "tri_testlist.txt").write_text("".join(f"{name}\n" for name in names) + "\n")
    return [
        Expected("", name, HALF, *(put(root / "sequences" / name / f"im{i}.png", 10 * n + i) for i in (1, 2, 3)))
        for n, name in enumerate(names)
    ]


def septuplets(root: Path) -> list[Expected]:
    (root / "sep_testlist.txt").write_text("00001/0266\n")
    frames = [put(root / "sequences/00001/0266" / f"im{i}.png", i) for i in range(1, 8)]
    return [Expected("", f"00001/0266/im{i + 1}", Fraction(i, 6), frames[0], frames[i], frames[6]) for i in range(1, 6)]


def ucf101(root: Path) -> list[Expected]:
    names = ("frame_00", "frame_01_gt", "frame_02")
    put(root / "1" / "frame_01_ours.png", 99)  # results of others lie beside them
    return [
        Expected("", scene, HALF, *(put(root / scene / f"{name}.png", int(scene) + i) for i, name in enumerate(names)))
        for scene in ("1", "11")
    ]


def ucf101_quintuplets(root: Path) -> list[Expected]:
    names = ("frame0", "frame1", "framet", "frame2", "frame3")
    frames = [put(root / "0" / f"{name}.png", i) for i, name in enumerate(names)]
    return [Expected("", "0", HALF, *frames[1:4])]


def middlebury(root: Path) -> list[Expected]:
    samples = []
    for number, (name, size) in enumerate((("Beanbags", SIZE), ("Urban3", (33, 17)))):
        for extra in (9, 12):
            put(root / "other-data" / name / f"frame{extra:02d}.png", extra)
        left = put(root / "other-data" / name / "frame10.png", number, size)
        truth = put(root / "other-gt-interp" / name / "frame10i11.png", number + 1, size)
        right = put(root / "other-data" / name / "frame11.png", number + 2, size)
        samples.append(Expected("", name, HALF, left, truth, right))
    return samples


def snufilm(root: Path, inside: str = "test", listed: str = "data/SNU-FILM/test") -> list[Expected]:
    samples = []
    scene = "GOPRO_test/GOPR0384"
    for step, mode in enumerate(("easy", "medium", "hard", "extreme"), 1):
        numbers = (8 - step, 8, 8 + step)
        (root / f"test-{mode}.txt").write_text(
            " ".join(f"{listed}/{scene}/{number:06d}.png" for number in numbers) + "\n"
        )
        frames = [put(root / inside / scene / f"{number:06d}.png", number) for number in numbers]
        samples.append(Expected(mode, "GOPR0384/000008", HALF, *frames))
    return samples


def x4k(root: Path, last: int = 32) -> list[Expected]:
    samples = []
    for kind in ("Type1", "Type2"):
        frames = [put(root / kind / "TEST01" / f"{number:04d}.png", number / 4) for number in range(last + 1)]
        for begin in range(0, last // 32 * 32, 32):
            for part in range(1, 8):
                at = begin + 4 * part
                t = Fraction(part, 8)
                samples.append(Expected(kind, f"TEST01/{at:04d}", t, frames[begin], frames[at], frames[begin + 32]))
    return samples


def triplets(root: Path) -> list[Expected]:
    put(root / ".cache" / "x.png", 0)
    (root / "readme.txt").write_text("not a sample")
    return [
        Expected("", scene, HALF, *(put(root / scene / f"{name}.png", i) for i, name in enumerate("abc")))
        for scene in ("one", "two")
    ]


def video(root: Path) -> list[Expected]:
    samples = []
    for name in ("a.mkv", "b.mkv"):
        path = make_clip(root / name, Clip(frames=6, size=(48, 32), codec="ffv1"))
        with FrameReader(path) as reader:
            frames = [from_frame(frame) for frame in reader]
        samples.append(Expected(name, "0001", HALF, frames[0], frames[1], frames[2], None, frames[4]))
        samples.append(Expected(name, "0003", HALF, frames[2], frames[3], frames[4], frames[0], None))
    return samples


BUILDERS: list[tuple[str, Callable[[Path], list[Expected]]]] = [
    ("vimeo90k", vimeo90k),
    ("vimeo90k", septuplets),
    ("ucf101", ucf101),
    ("ucf101", ucf101_quintuplets),
    ("middlebury", middlebury),
    ("snufilm", snufilm),
    ("x4k", x4k),
    ("triplets", triplets),
    ("video", video),
]
