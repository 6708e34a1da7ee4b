"""A stand-in for the network; `python -m tests.fakes` is the tool with it, for tests of whole processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from ugsp_cli.engine import Made, Request

STRIDES = (8, 4, 2)
DENSE_MACS = 1_000_000
LEVEL_DENSE_MACS = (100_000, 200_000, 300_000)
ACTIVE = (0.75, 0.5, 0.25)


class FakeEngine:
    """Blends the planes of both frames; has the face of `ugsp_cli.engine.Interpolator`."""

    model_name = "fake"
    weights_sha256 = "f" * 64
    parameters = 1
    device = "cpu"
    precision = "fp32"
    backend = "blend"
    strides: tuple[int, ...] = STRIDES

    def __init__(self, batch_size: int = 2, before: Callable[[], None] | None = None) -> None:
        """before: called before every batch; may raise or wait."""
        self.batch_size = batch_size
        self.notes: list[str] = []
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.resets = 0
        self._before = before

    def reset(self) -> None:
        """Count."""
        self.resets += 1

    def interpolate(self, requests: Sequence[Request]) -> list[Made]:
        """Blend."""
        if self._before is not None:
            self._before()
        self.batches.append(len(requests))
        self.requests.extend(requests)
        return [_blend(request) for request in requests]


def _blend(request: Request) -> Made:
    planes = tuple(
        np.round(left + (right.astype(np.float32) - left) * request.t).astype(left.dtype)
        for left, right in zip(request.left.planes, request.right.planes, strict=True)
    )
    performed = tuple(round(active * macs) for active, macs in zip(ACTIVE, LEVEL_DENSE_MACS, strict=True))
    return Made(
        planes=planes,
        active=ACTIVE,
        dense_macs=DENSE_MACS,
        performed_macs=DENSE_MACS - sum(LEVEL_DENSE_MACS) + sum(performed),
        level_dense_macs=LEVEL_DENSE_MACS,
        level_performed_macs=performed,
    )


def _main() -> None:
    """Run `ugsp` with the stand-in; FAKE_ENGINE_SECONDS is how long it takes over every batch."""
    from ugsp_cli import engine
    from ugsp_cli.__main__ import main

    seconds = float(os.environ.get("FAKE_ENGINE_SECONDS", "0"))
    engine.load_interpolator = lambda options: FakeEngine(before=lambda: time.sleep(seconds))  # type: ignore[assignment,return-value]
    main()


if __name__ == "__main__":
    _main()
