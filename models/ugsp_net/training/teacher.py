"""Flow labels for real crops, from DIS optical flow of OpenCV (an extra that only training needs).

The teacher sees the true frame at t, so its flow starts at the instant itself; it is believed where the frame that it
fetches looks like the true one.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FlowTeacher:
    """DIS flow from the true frame to both outer frames."""

    def __init__(self) -> None:
        try:
            cv2: Any = importlib.import_module("cv2")
        except ImportError as error:
            raise RuntimeError("the flow teacher needs OpenCV: pip install 'ugsp[train]', or --no-teacher") from error
        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def label(self, clip: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """clip: [3, 3, H, W] RGB at 0, t, 1 -> flow [4, H, W] in pixels (t -> 0, t -> 1) and trust [H, W] in [0, 1]."""
        cv2 = self._cv2
        pictures = [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in clip]
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
        height, width = grey[0].shape
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        flows, errors = [], []
        for other in (0, 2):
            flow = self._flow.calc(grey[1], grey[other], None)
            fetched = cv2.remap(
                pictures[other], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            difference = np.abs(fetched.astype(np.float32) - pictures[1]).mean(-1)
            errors.append(cv2.blur(difference, (5, 5)))
            flows.append(flow.transpose(2, 0, 1))
        # Half believed at 8 of 255 steps of error; both directions must hold.
        trust = 1 / (1 + (np.maximum(errors[0], errors[1]) / 8) ** 2)
        return np.concatenate(flows), trust.astype(np.float32)
