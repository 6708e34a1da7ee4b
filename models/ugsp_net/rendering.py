"""The last step: both frames warped to the instant and blended, with what the last level adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ugsp_net.compiled import compiled_by
from ugsp_net.masks import block_side, bounds, enlarge
from ugsp_net.warp import backward_warp, upsample

if TYPE_CHECKING:
    from ugsp_net.sparse import LastOutput


@compiled_by("cpu.rendering.put_rendered", "gpu.rendering.put_rendered")
def put_rendered(
    picture: Tensor,
    frame0: Tensor,
    frame1: Tensor,
    flow: Tensor,
    out: LastOutput,
    t: Tensor,
    pace: Tensor,
    prior: Tensor | None,
    still: Tensor | None,
    moving: Tensor | None,
) -> None:
    """Write the frame that ``rendered`` makes into a picture [B, 3, H, W] where something moves, elsewhere both frames
    blended as they are.

    moving: 1 where something does, else 0, [B, 1, rows, columns] for blocks whose sides are multiples of 8, or None
    where it does everywhere; the others as in ``rendered``.
    """
    height, width = frame0.shape[-2:]
    if moving is not None:
        picture.copy_(frame0.lerp(frame1, t.view(-1, 1, 1, 1)))
    how = t, pace, prior, still
    if moving is None:
        whole = out.part(slice(0, height), slice(0, width))
        picture.copy_(rendered(frame0, frame1, flow, whole, *how, (0, 0))[0])
        return
    box = bounds(moving)
    if box is None:
        return
    # Nothing is made outside the rectangle that holds all that moves.
    side = block_side(moving, height, width)
    rows, columns = (slice(side * span.start, side * span.stop) for span in box)
    frame = rendered(frame0, frame1, flow, out.part(rows, columns), *how, (rows.start, columns.start))[0]
    # Of 0 and 1: half the time of torch.where.
    picture[:, :, rows, columns].lerp_(frame, enlarge(moving[:, :, box[0], box[1]], side))


def rendered(
    frame0: Tensor,
    frame1: Tensor,
    flow: Tensor,
    out: Tensor,
    t: Tensor,
    pace: Tensor,
    prior: Tensor | None,
    still: Tensor | None,
    corner: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Frame, flow, blend weight and both warped frames of a rectangle in which everything may move, fp32.

    frame0, frame1: [B, 3, H, W]; flow: [B, 4, H / 2, W / 2], at stride 2, to both; out: [B, 8, h, w], what the last
    level puts out for the rectangle: more flow, the logarithm of how many times more of the first frame is to be seen,
    and a residual; t: [B]; pace: [B, 4, 1, 1], how far that flow reaches; prior, still: [B, 1, H / 2, W / 2], as in
    ``Found``; corner: the rectangle's first row and column, even.
    """
    when, size = t.view(-1, 1, 1, 1), out.shape[-2:]
    flow = _enlarged_part(flow, corner, size, 2).addcmul_(out[:, :4], pace)
    likelier = torch.log((1 - when) / when)
    if prior is None:
        logit = out[:, 4:5] + likelier
    else:
        logit = _enlarged_part(prior, corner, size).add_(out[:, 4:5]).add_(likelier)
    blend = logit.sigmoid_()
    warped0, warped1 = backward_warp(frame0, flow[:, :2], *corner), backward_warp(frame1, flow[:, 2:], *corner)
    frame = torch.lerp(warped1, warped0, blend).add_(out[:, 5:])
    box = None if still is None else _reached_box(still, corner, size)
    if still is not None and box is not None:
        # Captions and signs are small: only around them is the picture gone through once more.
        rows, columns = box
        there = tuple(slice(start + span.start, start + span.stop) for start, span in zip(corner, box, strict=True))
        share = _enlarged_part(still, (there[0].start, there[1].start), [s.stop - s.start for s in box])
        here0, here1 = frame0[:, :, there[0], there[1]], frame1[:, :, there[0], there[1]]
        made = frame[:, :, rows, columns]
        frame[:, :, rows, columns] = torch.lerp(made, torch.lerp(here0, here1, when), share)
        share = F.pad(share, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))
        flow, blend = flow * (1 - share), torch.lerp(blend, (1 - when).expand_as(blend), share)
    return frame, flow, blend, (warped0, warped1)


def _enlarged_part(values: Tensor, corner: tuple[int, int], size: Sequence[int], times: float = 1) -> Tensor:
    """A rectangle of ``times * upsample(values)``, without making the rest; its corner and its size are even."""
    spans, cuts = [], []
    for start, length, most in zip(corner, size, values.shape[-2:], strict=True):
        first, last = start // 2, (start + length) // 2
        # One more position on each side, as far as there is one: enlarging reaches there.
        before, after = min(first, 1), min(most - last, 1)
        spans.append(slice(first - before, last + after))
        cuts.append(slice(2 * before, 2 * before + length))
    part = values[:, :, spans[0], spans[1]]
    return upsample(part if times == 1 else times * part)[:, :, cuts[0], cuts[1]]


def _reached_box(still: Tensor, corner: tuple[int, int], size: Sequence[int]) -> tuple[slice, slice] | None:
    """Rows and columns, within a rectangle of ``upsample(still)``, outside which it is 0; None where all is. Even."""
    (top, left), (height, width) = (start // 2 for start in corner), (length // 2 for length in size)
    # Enlarging reaches one position further.
    above, before = min(top, 1), min(left, 1)
    box = bounds(still[:, :, top - above : top + height + 1, left - before : left + width + 1])
    if box is None:
        return None
    rows, columns = (
        slice(2 * max(0, span.start - first - 1), 2 * min(most, span.stop - first + 1))
        for span, first, most in zip(box, (above, before), (height, width), strict=True)
    )
    return rows, columns
