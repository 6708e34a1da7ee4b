"""How much of the work is done at once: settled by the memory that is free, and cut down where it runs out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ugsp_cli.memory import USABLE, free_bytes, peak_bytes
from ugsp_cli.windows import Window, split
from ugsp_net.config import NetConfig

__all__ = ["Portion", "Portions"]

FLOW_FACTORS = ((2560 * 1440, 1), (4096 * 2304, 2))
"""Pixels up to which frames are seen by the network that many times smaller; beyond, four times. What moves by more
than 64 pixels is not matched, and 4K frames move by more; so far no 4K footage has been measured."""

MOST_COARSE = 4

LARGE = 1920 * 1088
"""Pixels of frames of which not so many are made in a batch."""

MOST_AT_ONCE = 16
"""Frames that are made in a batch by a processor with many cores; of large ones half as many."""


@dataclass(frozen=True)
class Portion:
    """What is done at once."""

    batch: int
    """Frames."""
    halvings: int = 0
    """How often a side of the picture is halved for windows; see `split`."""
    coarser: int = 1
    """How many times smaller than usual the network sees the frames."""


class Portions:
    """A portion for each size of picture. Not thread-safe."""

    def __init__(
        self,
        device: torch.device,
        precision: str,
        config: NetConfig,
        batch: int | None,
        flow_scale: float | None,
        workers: int | None = None,
    ) -> None:
        """batch: frames at once, None: what suits the device; flow_scale: the user's, None: by the size; workers:
        frames that a processor makes beside each other; None: a batch is made in one launch."""
        self.notes: list[str] = []
        """What was given up since ``reset``, each kind once."""
        self._device = device
        self._precision = precision
        self._config = config
        self._batch = batch
        self._flow_scale = flow_scale
        self._workers = workers
        self._at: dict[tuple[int, int], Portion] = {}
        self._why: dict[str, str] = {}

    def reset(self) -> None:
        """Begin anew, by the memory that is free at the next frame."""
        self._at.clear()
        self._why.clear()
        self.notes.clear()

    def settle(self, height: int, width: int) -> Portion:
        """What is done at once in frames of a size, settled when they are asked for first, by the memory free then.

        The prediction is rather too high than too low: where nothing is left to give up, it is tried all the same.
        """
        size = (height, width)
        if size not in self._at:
            wanted = Portion(self._batch or self._usual(height, width))
            self._at[size] = wanted
            free = free_bytes(self._device)
            while free is not None and self._predicted(height, width) > USABLE * free:
                if not self._give_up(height, width):
                    break
            if self._batch is None:  # nobody asked for more
                wanted = replace(wanted, batch=self._at[size].batch)
            self._tell("little memory is free", height, width, wanted)
        return self._at[size]

    def shrink(self, height: int, width: int) -> bool:
        """Do less at once, since memory ran out; False where there is nothing left to give up."""
        before = self.settle(height, width)
        if not self._give_up(height, width):
            return False
        self._tell("memory ran out", height, width, before)
        return True

    def factor(self, height: int, width: int) -> int:
        """How many times smaller the network sees frames of a size."""
        if self._flow_scale is not None:
            return round(1 / self._flow_scale)
        factor = next((factor for most, factor in FLOW_FACTORS if height * width <= most), MOST_COARSE)
        portion = self._at.get((height, width))
        return min(MOST_COARSE, factor * (portion.coarser if portion else 1))

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns in which the network sees frames of a size, with the padding."""
        step = self._config.alignment * self.factor(height, width)
        alignment = self._config.alignment
        return alignment * -(-height // step), alignment * -(-width // step)

    def windows(self, height: int, width: int) -> list[Window]:
        """What the network sees at once of frames of a size; a single window is all of it."""
        return self._windows(height, width, self.settle(height, width).halvings)

    def _usual(self, height: int, width: int) -> int:
        """Frames at once where nobody asks and memory suffices."""
        if self._workers is None:
            # Eight of 1920x1080 fill a graphics card but for the search's smaller sizes: with sixteen an H200 takes 8 %
            # less time for each (20 % of the blocks computed).
            return int(max(1, min(32, round(16 * 1920 * 1080 / (width * height)))))
        # More than are made at once: their searches and encodings are shared out too, and who has done his share waits
        # for the others a few times a batch. On two cores four times as many took a tenth less time than twice as many;
        # but they take memory, large ones much.
        several, most = (4, MOST_AT_ONCE) if width * height <= LARGE else (2, MOST_AT_ONCE // 2)
        return min(several * self._workers, most) if self._workers > 1 else 1

    def _windows(self, height: int, width: int, halvings: int) -> list[Window]:
        return split(*self.seen_size(height, width), halvings, self._config.alignment)

    def _predicted(self, height: int, width: int) -> int:
        """Bytes that frames of a size take at their peak."""
        portion = self._at[height, width]
        windows = self._windows(height, width, portion.halvings)
        most = max(window.pixels for window in windows)
        return peak_bytes(height * width, most, portion.batch, self._precision, self._device, self._workers)

    def _give_up(self, height: int, width: int) -> bool:
        """Do less at once from now on. First what costs nothing: fewer frames. Then windows, which cost time and change
        next to nothing. A coarser look comes last: it costs detail."""
        portion = self._at[height, width]
        finer = self._windows(height, width, portion.halvings + 1)
        if portion.batch > 1:
            less = replace(portion, batch=portion.batch // 2)
        elif len(finer) > len(self._windows(height, width, portion.halvings)):
            less = replace(portion, halvings=portion.halvings + 1)
        elif self._flow_scale is None and self.factor(height, width) < MOST_COARSE:
            less = replace(portion, coarser=2 * portion.coarser)
        else:
            return False
        self._at[height, width] = less
        return True

    def _tell(self, why: str, height: int, width: int, before: Portion) -> None:
        """Note what is different from before, each kind once and as it is now."""
        now = self._at[height, width]
        given_up = {
            "batch": now.batch < before.batch,
            "windows": now.halvings > before.halvings,
            "scale": now.coarser > before.coarser,
        }
        self._why.update({kind: why for kind, changed in given_up.items() if changed})
        texts = {
            "batch": f"frames made at once: {now.batch}",
            "windows": f"each frame is made in {len(self.windows(height, width))} windows that overlap",
            "scale": f"motion is looked for at {1 / self.factor(height, width):g} of the size (--flow-scale)",
        }
        self.notes[:] = [f"{self._why[kind]}: {text}" for kind, text in texts.items() if kind in self._why]
