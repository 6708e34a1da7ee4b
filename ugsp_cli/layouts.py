"""The layouts in which frame-interpolation data sets are published: folders -> samples with a known middle frame.

What has to be there is checked before anything is computed, and what is missing is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePosixPath

from ugsp_cli.decode import FrameReader
from ugsp_cli.errors import InputError
from ugsp_cli.folder import VIDEO_SUFFIXES
from ugsp_cli.media import probe
from ugsp_cli.pictures import PICTURE_SUFFIXES, from_frame, read_picture
from ugsp_net.metrics import Picture

__all__ = ["LAYOUTS", "Clip", "Sample", "Triplet", "find_samples"]

HALF = Fraction(1, 2)

SNUFILM_MODES = ("easy", "medium", "hard", "extreme")

X4K_SPAN = 32
"""Frames of 1/1000 s between the two that are given, as XVFI evaluates X-TEST."""
X4K_PARTS = 8
"""The instants to be made are k / 8: from 31 to 250 frames a second."""

VIDEO_SAMPLES = 20
"""Restored frames of each video where no limit is given: every second one of the first 41."""

# How the UCF101 triplets of DVF are named in the copies that are passed around: (left, truth, right). The second is of
# quintuplets frame0 to frame3, so frame0, frame1, frame2 cannot be one too: a missing framet would go unseen.
_UCF101_NAMES = (
    ("frame_00", "frame_01_gt", "frame_02"),
    ("frame1", "framet", "frame2"),
    ("frame_00", "frame_01", "frame_02"),
    ("im1", "im2", "im3"),
)
_MIDDLEBURY_FOLDERS = (("other-data", "other-gt-interp"), ("input", "gt"))  # (given, truth)


@dataclass(frozen=True, eq=False)
class Sample:
    """Two pictures and what was seen between them."""

    split: str
    """Part of the data set; empty where it has none."""
    name: str
    """Which sample it is, unique within its split."""
    t: Fraction
    """Instant of the truth, between left (0) and right (1)."""
    left: Picture = field(repr=False)
    truth: Picture = field(repr=False)
    right: Picture = field(repr=False)
    before: Picture | None = field(default=None, repr=False)
    """As long before left as right is after it, where the data set has one."""
    after: Picture | None = field(default=None, repr=False)
    """As long after right."""


@dataclass(frozen=True)
class Triplet:
    """A sample in three picture files."""

    split: str
    """As in ``Sample``."""
    name: str
    """As in ``Sample``."""
    t: Fraction
    """As in ``Sample``."""
    left: Path
    truth: Path
    right: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return self.left, self.truth, self.right

    @property
    def count(self) -> int:
        """Samples in here."""
        return 1

    def samples(self) -> Iterator[Sample]:
        """Read the files. Raises InputError."""
        left, truth, right = (read_picture(path) for path in (self.left, self.truth, self.right))
        for path, picture in ((self.truth, truth), (self.right, right)):
            if picture.shape != left.shape:
                raise InputError(
                    f"{path} is {_size(picture)}, but {self.left.name} is {_size(left)}",
                    "All three pictures of a sample must have one size.",
                )
        yield Sample(self.split, self.name, self.t, left, truth, right)


@dataclass(frozen=True)
class Clip:
    """A video of which every second frame is taken away, to be restored. The frames before and after both that are kept
    around it help, as they do when a video is converted."""

    split: str
    """The video's name."""
    path: Path
    count: int
    """Most samples to take, from the beginning."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def samples(self) -> Iterator[Sample]:
        """Decode; the network gets 8-bit RGB, as in any other layout. Raises InputError, DecodeError."""
        with FrameReader(self.path, scene_detection=False) as reader:
            pictures = (from_frame(frame) for frame in islice(reader, 2 * self.count + 1))
            left = next(pictures)
            before: Picture | None = None
            waiting: Sample | None = None
            number = 0
            # One iterator twice: two pictures a turn; a last one without a successor is left over.
            for number, (truth, right) in enumerate(zip(pictures, pictures, strict=False), 1):
                if waiting is not None:
                    yield replace(waiting, after=right)
                waiting = Sample(self.split, f"{2 * number - 1:04d}", HALF, left, truth, right, before)
                before, left = left, right
            if waiting is not None:
                yield waiting
        if not number:
            raise InputError(f"{self.path} has fewer than three frames", "Leave it out: nothing of it can be restored.")


@dataclass(frozen=True)
class Layout:
    """One way in which samples lie in a folder."""

    find: Callable[[Path], Iterator[Triplet]]
    """Names the samples in order; what it names need not exist."""
    expects: str
    """What the folder holds, for messages."""


def find_samples(layout: str, folder: Path, limit: int | None = None) -> list[Triplet] | list[Clip]:
    """The samples of a folder. limit: so many of each split, the first ones.

    Raises InputError where the folder holds none, a list cannot be read, or frames that should be there are missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "Name the folder that holds the data set.")
    if layout == "video":
        return _clips(folder, limit or VIDEO_SAMPLES)
    known = LAYOUTS[layout]
    taken: dict[str, int] = {}
    samples = []
    for sample in known.find(folder):
        taken[sample.split] = taken.get(sample.split, 0) + 1
        if limit is None or taken[sample.split] <= limit:
            samples.append(sample)
    if not samples:
        raise InputError(f"{folder} holds no samples of the layout {layout}", f"It should hold {known.expects}.")
    paths = dict.fromkeys(path for sample in samples for path in (sample.left, sample.truth, sample.right))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"missing in {folder}: {', '.join(missing[:3])}{more}",
            f"Complete the data set, or name the folder that holds {known.expects}.",
        )
    return samples


def _vimeo90k(folder: Path) -> Iterator[Triplet]:
    # The test set alone is published with its frames in target/.
    frames = next((folder / name for name in ("sequences", "target") if (folder / name).is_dir()), folder / "sequences")
    if (folder / "tri_testlist.txt").exists():
        for (name,) in _table(folder / "tri_testlist.txt", 1):
            yield Triplet("", name, HALF, *(frames / name / f"im{number}.png" for number in (1, 2, 3)))
    elif (folder / "sep_testlist.txt").exists():
        for (name,) in _table(folder / "sep_testlist.txt", 1):
            left, *truths, right = (frames / name / f"im{number}.png" for number in range(1, 8))
            for number, truth in enumerate(truths, 1):
                yield Triplet("", f"{name}/{truth.stem}", Fraction(number, 6), left, truth, right)


def _ucf101(folder: Path) -> Iterator[Triplet]:
    for inner in _folders(folder):
        pictures = {path.stem: path for path in _pictures(inner)}
        # The naming of which most is there; with a tie, the more common one.
        names = max(_UCF101_NAMES, key=lambda names: sum(name in pictures for name in names))
        if pictures:
            yield Triplet("", inner.name, HALF, *(pictures.get(name, inner / f"{name}.png") for name in names))


def _middlebury(folder: Path) -> Iterator[Triplet]:
    for given, truth in _MIDDLEBURY_FOLDERS:
        data, gt = folder / given, folder / truth
        for name in sorted({inner.name for root in (data, gt) if root.is_dir() for inner in _folders(root)}):
            scene = data / name
            yield Triplet("", name, HALF, scene / "frame10.png", gt / name / "frame10i11.png", scene / "frame11.png")


def _snufilm(folder: Path) -> Iterator[Triplet]:
    for mode in SNUFILM_MODES:
        places = (folder / f"test-{mode}.txt", folder / "eval_modes" / f"test-{mode}.txt")
        table = next((path for path in places if path.exists()), None)
        if table is None:
            continue
        rows = _table(table, 3)
        # The lists say data/SNU-FILM/test/...; the leading folders are those of their author.
        foreign = next((count for path in rows[0] if (count := _foreign_parts(folder, path)) is not None), 0)
        for row in rows:
            left, truth, right = (folder.joinpath(*PurePosixPath(path).parts[foreign:]) for path in row)
            yield Triplet(mode, f"{truth.parent.name}/{truth.stem}", HALF, left, truth, right)


def _foreign_parts(folder: Path, path: str) -> int | None:
    """How many leading parts of a listed path to drop so that it exists in the folder."""
    parts = PurePosixPath(path).parts
    return next((count for count in range(len(parts)) if folder.joinpath(*parts[count:]).is_file()), None)


def _x4k(folder: Path) -> Iterator[Triplet]:
    root = folder / "test" if (folder / "test").is_dir() else folder
    for scene in sorted({path.parent for path in root.rglob("*") if _is_picture(path) and path.stem.isdecimal()}):
        pictures = {int(path.stem): path for path in _pictures(scene) if path.stem.isdecimal()}
        like = pictures[max(pictures)]

        def frame(number: int, scene: Path = scene, like: Path = like) -> Path:
            return scene / f"{number:0{len(like.stem)}d}{like.suffix}"

        split = "" if scene in (root, folder) or scene.parent == root else scene.parent.name
        for begin in range(0, max(max(pictures), X4K_SPAN) // X4K_SPAN * X4K_SPAN, X4K_SPAN):
            for part in range(1, X4K_PARTS):
                truth = frame(begin + part * X4K_SPAN // X4K_PARTS)
                name, t = f"{scene.name}/{truth.stem}", Fraction(part, X4K_PARTS)
                yield Triplet(split, name, t, frame(begin), truth, frame(begin + X4K_SPAN))


def _triplets(folder: Path) -> Iterator[Triplet]:
    for inner in _folders(folder):
        pictures = _pictures(inner)
        if len(pictures) != 3:
            raise InputError(f"{inner} holds {len(pictures)} pictures, not 3", "Every folder must hold one triplet.")
        yield Triplet("", inner.name, HALF, *pictures)


def _clips(folder: Path, count: int) -> list[Clip]:
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    paths = sorted(path for path in names if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} holds no videos", "Name a folder of videos.")
    for path in paths:
        probe(path)  # raises InputError
    return [Clip(path.name, path, count) for path in paths]


LAYOUTS = {
    "vimeo90k": Layout(_vimeo90k, "tri_testlist.txt (or sep_testlist.txt) and sequences/"),
    "ucf101": Layout(_ucf101, "folders with frame_00.png, frame_01_gt.png and frame_02.png"),
    "middlebury": Layout(
        _middlebury, "other-data/NAME/frame10.png and frame11.png, other-gt-interp/NAME/frame10i11.png"
    ),
    "snufilm": Layout(_snufilm, "test-easy.txt, test-medium.txt, test-hard.txt or test-extreme.txt and their pictures"),
    "x4k": Layout(_x4k, "folders with 0000.png to 0032.png, as Type1/TEST01"),
    "triplets": Layout(_triplets, "folders with three pictures each"),
}
"""All layouts of pictures, by their names on the command line; ``video`` is the one that is none."""


def _table(path: Path, columns: int) -> list[list[str]]:
    """The words of each line of a list, blank lines left out. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InputError(f"the list {path} cannot be read: {reason}", "Unpack it from the data set again.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and len(words) != columns:
            raise InputError(
                f"the list {path} cannot be read: line {number} holds {len(words)} names, not {columns}",
                "Unpack it from the data set again.",
            )
        rows += [words] if words else []
    if not rows:
        raise InputError(f"the list {path} is empty", "Unpack it from the data set again.")
    return rows


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _size(picture: Picture) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"
