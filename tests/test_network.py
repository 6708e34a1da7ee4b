"""The network: shapes, exactness with pruning off, any instant, nesting, shared encodings, matching."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nets import SMALL, small_net, smooth_frames
from tests.test_search import texture
from ugsp_net import blocks, checkpoint, matching, network, warp
from ugsp_net.config import NetConfig
from ugsp_net.masks import (
    agreement,
    change,
    enlarge,
    fixed_gate,
    gumbel_gate,
    hard_gate,
    keep_gate,
    still_blocks,
    still_pixels,
    to_grid,
    unsettled,
)
from ugsp_net.network import UGSP, Encoding, Found, LevelState
from ugsp_net.rendering import rendered
from ugsp_net.search import inverse_search, look
from ugsp_net.sparse import DenseOutput
from ugsp_net.training import synthetic
from ugsp_net.warp import backward_warp, upsample


def test_frame_and_flow_have_the_pictures_size() -> None:
    frames = smooth_frames(4, 64, 96)
    out = small_net()(frames[:2], frames[2:], torch.tensor([0.25, 0.7]))
    assert out.frame.shape == (2, 3, 64, 96)
    assert out.flow.shape == (2, 4, 64, 96)
    assert out.frame.dtype == out.flow.dtype == torch.float32
    assert out.masks == ()


def test_all_blocks_active_equals_pruning_off_exactly() -> None:
    net, frames = small_net(), smooth_frames(2, 64, 64)
    t = torch.tensor([0.5])
    dense = net(frames[:1], frames[1:], t)
    everything = net(frames[:1], frames[1:], t, fixed_gate([torch.ones(1, 1, 4, 4)] * 3))
    assert torch.equal(dense.frame, everything.frame)
    assert [float(mask.mean()) for mask in everything.masks] == [1, 1, 1]


def test_the_shortcut_is_what_pruning_everything_finer_leaves() -> None:
    net, frames, t = small_net(), smooth_frames(2, 64, 96), torch.tensor([0.3])
    for computed in range(3):
        masks = [torch.full((1, 1, 4, 6), float(level < computed)) for level in range(3)]
        pruned = net(frames[:1], frames[1:], t, fixed_gate(masks))
        left = net.shortcut(frames[:1], frames[1:], pruned.states[computed], t)
        torch.testing.assert_close(left, pruned.frame, atol=1e-5, rtol=1e-4)


def test_where_nothing_is_kept_no_level_is_needed() -> None:
    net, frames, t = small_net(), smooth_frames(4, 96, 160), torch.tensor([0.3, 0.8])
    frames[2:, :, :48] = frames[:2, :, :48]  # still
    gate = keep_gate(0)
    assert net.needs_levels(hard_gate())
    assert net.needs_levels(None)
    assert not net.needs_levels(gate)
    assert UGSP(dataclasses.replace(SMALL, search=False)).needs_levels(gate)
    assert UGSP(dataclasses.replace(SMALL, refine=True)).needs_levels(gate)
    expected = net(frames[:2], frames[2:], t, gate)
    found = net.find(frames[:2], frames[2:], t)
    assert found is not None
    made = net.without_levels(frames[:2], frames[2:], found, t)
    for one, other in ((made.frame, expected.frame), (made.flow, expected.flow), (made.blend, expected.blend)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [mask.shape for mask in made.masks] == [mask.shape for mask in expected.masks]
    assert not any(mask.any() for mask in (*made.masks, *expected.masks))


def test_masks_are_nested() -> None:
    net, frames = small_net(), smooth_frames(4, 96, 128)
    for gate in (hard_gate(), keep_gate(0.5), gumbel_gate(0.7)):
        masks = net(frames[:2], frames[2:], torch.tensor([0.5, 0.5]), gate).masks
        assert len(masks) == 3
        for parent, child in itertools.pairwise(masks):
            assert torch.all(child <= parent)
            assert torch.all((child == 0) | (child == 1))


def test_masks_of_the_papers_configuration_are_nested_over_their_grids() -> None:
    net, frames = small_net(dataclasses.replace(SMALL, block=2)), smooth_frames(2, 64, 64)
    masks = net(frames[:1], frames[1:], torch.tensor([0.5]), hard_gate()).masks
    assert [tuple(mask.shape[-2:]) for mask in masks] == [(8, 8), (16, 16), (32, 32)]
    for parent, child in itertools.pairwise(masks):
        assert torch.all(child <= parent.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_keep_gate_keeps_its_share_in_every_picture() -> None:
    logits = torch.randn(3, 1, 10, 10)
    mask = keep_gate(0.3)(logits, None)
    assert mask.flatten(1).sum(1).tolist() == [30, 30, 30]
    assert mask[0].bool().logical_and(logits[0] < logits[0].flatten().topk(30).values.min()).sum() == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        keep_gate(1.5)


def test_gumbel_gate_passes_gradients_to_the_logits() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    gumbel_gate(1.0)(logits, None).sum().backward()
    assert logits.grad is not None
    assert torch.all(logits.grad > 0)


def test_blocks_agree_within_the_noise() -> None:
    frame = torch.full((1, 3, 32, 64), 0.5)
    other = frame.clone()
    other[:, 1, 3, 5] += 9 / 255  # one pixel, in one colour
    other[:, :, :16, 16:32] += 2.2 / 255  # a code value everywhere
    other[:, :, 16:, 16:32] += 2.8 / 255  # a little more
    other[:, 2, 20, 50] -= 7 / 255
    assert agreement(change(frame, other), 16)[0, 0].tolist() == [[False, True, True, True], [True, False, True, True]]


def test_outside_what_is_unsettled_all_is_still_whatever_the_flow() -> None:
    assert unsettled(torch.ones(1, 1, 9, 16, dtype=torch.bool), 16) is None
    for rows, columns, box in (((12,), (7,), (128, 272, 48, 192)), ((0, 3), (30, 25), (0, 128, 336, 512))):
        agree = torch.ones(2, 1, 18, 32, dtype=torch.bool)
        for picture, (row, column) in enumerate(zip(rows, columns, strict=True)):
            agree[picture, 0, row, column] = False
        found = unsettled(agree, 16)
        assert found is not None
        assert (found[0].start, found[0].stop, found[1].start, found[1].stop) == box
        moving = enlarge((~still_blocks(agree, torch.full((2, 4, 18, 32), 99.0), 16)).float(), 16)
        assert moving.sum() == moving[:, :, found[0], found[1]].sum() > 0


def still_among(frames: Sequence[Tensor]) -> Tensor:
    """[H, W] bool, at the size of the frames, of which the second and the third are the pair."""
    changed = torch.stack([change(*pair) for pair in itertools.pairwise(frames)]).amax(0)
    return enlarge(still_pixels(frames[1], frames[2], changed), 2)[0, 0] > 0


def panned(number: int) -> Tensor:
    """[1, 3, 112, 208]: a texture that has moved by 6 and 3 pixels so many times."""
    return texture(160, 304)[..., 24 - 3 * number : 136 - 3 * number, 48 - 6 * number : 256 - 6 * number]


def captioned(frame: Tensor) -> Tensor:
    """Bars like those of letters, white with dark edges, in the middle; all else is the frame."""
    frame = frame.clone()
    for left in range(48, 144, 16):
        frame[..., 40:72, left : left + 10] = 0.05
        frame[..., 42:70, left + 2 : left + 8] = 0.95
    return frame


def test_a_caption_before_what_moves_stands_still() -> None:
    plain = [panned(number) for number in range(4)]
    still = still_among([captioned(frame) for frame in plain])
    letters = captioned(torch.full((1, 3, 112, 208), 0.5))[0, 0] != 0.5
    assert still[letters].all()
    around = F.max_pool2d(letters[None, None].float(), 9, 1, 4)[0, 0] > 0
    assert not still[~around].any()
    assert not still_among(plain).any()


def test_where_all_else_stands_still_a_caption_is_found_as_anywhere() -> None:
    """Only the part of the picture in which something moves is looked at."""
    plain = [panned(number) for number in range(4)]
    ground = texture(256, 480)

    def framed(frame: Tensor) -> Tensor:
        frame, whole = captioned(frame), ground.clone()
        whole[..., 64:176, 128:336] = frame
        return whole

    whole = still_among([framed(frame) for frame in plain])
    alone = still_among([captioned(frame) for frame in plain])
    assert torch.equal(whole[96:144, 168:296], alone[32:80, 40:168])
    assert alone[32:80, 40:168].any()
    assert not whole[:32].any()


def test_a_still_background_may_be_passed_by_something_fast() -> None:
    """What is in none of the frames may have been there between them."""
    frames = [texture(112, 208) for _ in range(4)]
    for number, frame in enumerate(frames):
        frame[..., 50:62, 8 + 48 * number : 20 + 48 * number] = 0.9
    assert not still_among(frames).any()


def test_a_caption_stays_readable() -> None:
    """Frames before and after tell what stands still; without them flow tears at it."""
    net, half = small_net(), torch.tensor([0.5])
    before, frame0, truth, frame1, after = (captioned(panned(number)) for number in (-2, 0, 1, 2, 4))
    letters = captioned(torch.full((1, 3, 112, 208), 0.5))[0, 0] != 0.5
    with torch.no_grad():
        alone = net(frame0, frame1, half).frame
        made = net(frame0, frame1, half, hard_gate(), before, after)
    error, torn = (float((frame - truth).abs()[..., letters].mean()) for frame in (made.frame, alone))
    assert error < 1e-3 < torn
    assert made.flow[..., letters].abs().mean() < 0.01  # but for the corners of single letters


def test_nothing_moves_where_frames_agree_and_no_flow_leads_there() -> None:
    agree = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    flow = torch.zeros(1, 4, 12, 12)
    flow[:, 2, 6, 6] = -40.0
    assert still_blocks(agree, flow, 16).all()  # all agrees for 64 pixels around: the flow is wrong
    agree[..., 0, 0] = False
    flow[:, 1, 2, 2] = 30.0
    still = still_blocks(agree, flow, 16)[0, 0]
    assert still[6, 6]
    assert not still[0, 0]
    assert not still[1:4, 1:4].any()  # something may pass here, and does not show in either frame
    assert still.sum() == 144 - 1 - 9


@pytest.mark.parametrize("backend", ["reference", "tiles"])
@pytest.mark.parametrize("block", [8, 16, 32])
def test_what_is_still_stays_as_it_is(block: int, backend: str) -> None:
    """Whatever the network thinks: an untrained one changes everything."""
    net = small_net(dataclasses.replace(SMALL, block=block))
    frames, t = smooth_frames(2, 64, 192), torch.tensor([0.3, 0.6])
    first, second = frames, frames.clone()
    second[1, :, 32:48, 32:48] = 0.5
    encodings = net.encode(first), net.encode(second)
    coarse = net.coarse(*encodings, net.find(first, second, t), t)
    coarse = dataclasses.replace(coarse, flow=coarse.flow + 1)  # 16 pixels everywhere, as if something may pass
    with torch.no_grad():
        made = net.interpolate(first, second, *encodings, coarse, t, lambda logits, parent: parent, backend)  # type: ignore[arg-type, return-value]
        dense = net.interpolate(first, second, *encodings, coarse, t)
    assert (dense.frame - first).abs().amax((1, 2, 3)).min() > 0.05
    assert (made.frame[0] - first[0]).abs().max() < 0.5 / 255
    assert (made.frame[1, ..., 128:] - first[1, ..., 128:]).abs().max() < 0.5 / 255  # 64 pixels away and more
    assert (made.frame[1, :, 32:48, 32:48] - dense.frame[1, :, 32:48, 32:48]).abs().max() < 1e-5
    for mask in made.masks:
        assert not mask[0].any()
        assert mask[1].any()


def test_what_moves_is_made_alike_in_its_rectangle_and_in_the_whole_picture() -> None:
    """Rendering leaves out what is still; what it makes of the rest does not change."""
    net, frames, t = small_net(), smooth_frames(4, 96, 160), torch.tensor([0.3, 0.6])
    flow, out = torch.randn(2, 4, 48, 80), 0.3 * torch.randn(2, 8, 96, 160)
    moving = torch.zeros(2, 1, 6, 10)
    moving[0, 0, 1:3, 4:7], moving[1, 0, 2:5, 5], moving[1, 0, 4, 9] = 1, 1, 1
    found = Found.of(torch.cat((torch.randn(2, 5, 48, 80), torch.rand(2, 1, 48, 80)), dim=1))
    with torch.no_grad():
        part = net._render(frames[:2], frames[2:], flow, DenseOutput(out), t, found, moving, motion=True)
        frame_alone = net._render(frames[:2], frames[2:], flow, DenseOutput(out), t, found, moving, motion=False)[0]
        whole = rendered(frames[:2], frames[2:], flow, out, t, net.pace(t), found.prior, found.still, (0, 0))
        still = torch.zeros_like(moving)
        nothing = net._render(frames[:2], frames[2:], flow, DenseOutput(out), t, found, still, motion=True)[0]
    inside, when = enlarge(moving, 16) > 0, t.view(-1, 1, 1, 1)
    blended = torch.lerp(frames[:2], frames[2:], when)
    where_still = blended, torch.zeros(2, 4, 96, 160), (1 - when).expand(2, 1, 96, 160)
    for one, other, else_ in zip(part[:3], whole[:3], where_still, strict=True):
        torch.testing.assert_close(one, torch.where(inside, other, else_), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nothing, blended)
    torch.testing.assert_close(frame_alone, part[0], atol=1e-5, rtol=1e-5)


def test_grid_of_blocks_averages_the_logits() -> None:
    logits = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(to_grid(logits, 8, 16)[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert to_grid(logits, 16, 8).shape == (1, 1, 8, 8)


def test_a_frame_is_encoded_alone() -> None:
    net, frames = small_net(), smooth_frames(3, 64, 64)
    together = net.encode(frames)
    alone = net.encode(frames[1:2])
    for batch, single in zip(together.features, alone.features, strict=True):
        torch.testing.assert_close(batch[1:2], single)


def test_steps_equal_forward() -> None:
    net, frames, t = small_net(), smooth_frames(2, 64, 64), torch.tensor([0.3])
    first, second = net.encode(frames[:1]), net.encode(frames[1:])
    coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
    steps = net.interpolate(frames[:1], frames[1:], first, second, coarse, t)
    torch.testing.assert_close(steps.frame, net(frames[:1], frames[1:], t).frame)


def test_the_instant_moves_flow_and_blend() -> None:
    net, frames = small_net(), smooth_frames(2, 64, 64)
    early, late = (net(frames[:1], frames[1:], torch.tensor([t])) for t in (0.1, 0.9))
    assert early.flow[:, :2].abs().mean() < late.flow[:, :2].abs().mean()
    assert early.flow[:, 2:].abs().mean() > late.flow[:, 2:].abs().mean()
    assert early.blend.mean() > late.blend.mean()


def test_without_the_instant_the_network_is_the_papers() -> None:
    net = UGSP(NetConfig.paper())
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(6.76e6, rel=0.002)


def test_bf16_keeps_flow_and_frame_in_fp32() -> None:
    frames, t = smooth_frames(2, 64, 64), torch.tensor([0.5])
    exact = small_net()(frames[:1], frames[1:], t)
    net = small_net().to(torch.bfloat16)
    out = net(frames[:1], frames[1:], t)
    assert out.frame.dtype == out.flow.dtype == torch.float32
    assert all(state.flow.dtype == torch.float32 for state in out.states)
    assert (out.frame - exact.frame).abs().mean() < 0.02


@pytest.mark.parametrize(("height", "width", "radius"), [(8, 8, 2), (13, 21, 1), (5, 40, 3)])
def test_local_correlation_is_the_sum_over_channels(height: int, width: int, radius: int) -> None:
    first, second = torch.randn(2, 6, height, width), torch.randn(2, 6, height, width)
    volume = matching.local_correlation(first, second, radius)
    padded = torch.nn.functional.pad(second, (radius,) * 4)
    steps = range(-radius, radius + 1)
    for channel, (dy, dx) in enumerate(itertools.product(steps, steps)):
        shifted = padded[..., radius + dy : radius + dy + height, radius + dx : radius + dx + width]
        torch.testing.assert_close(volume[:, channel], (first * shifted).sum(1))


def test_warp_reads_where_the_flow_points() -> None:
    source = torch.arange(30.0).reshape(1, 1, 5, 6)
    flow = torch.zeros(1, 2, 5, 6)
    flow[:, 0], flow[:, 1] = 1.0, 0.5
    warped = backward_warp(source, flow)
    assert warped[0, 0, 1, 2] == pytest.approx((source[0, 0, 1, 3] + source[0, 0, 2, 3]).item() / 2, abs=1e-4)
    assert warped[0, 0, 4, 5] == pytest.approx(29.0, abs=1e-4)  # outside: the border's value


def test_encodings_of_different_pairs_do_not_mix() -> None:
    net, frames, t = small_net(), smooth_frames(4, 64, 64), torch.tensor([0.5, 0.5])
    together = net(frames[:2], frames[2:], t, hard_gate())
    for index in range(2):
        alone = net(frames[index : index + 1], frames[2 + index : 3 + index], t[:1], hard_gate())
        torch.testing.assert_close(together.frame[index : index + 1], alone.frame, atol=1e-5, rtol=1e-4)


def test_configuration_round_trip_and_errors() -> None:
    config = NetConfig.paper()
    assert NetConfig.from_dict(config.to_dict()) == config
    assert NetConfig.from_dict({**config.to_dict(), "widths": [1, 2, 3, 4]}).widths == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="unknown configuration keys: colour"):
        NetConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="power of two"):
        NetConfig(block=12)
    with pytest.raises(ValueError, match="activation"):
        NetConfig(activation="gelu")


def test_encoding_is_what_interpolate_takes() -> None:
    net, frames = small_net(), smooth_frames(1, 64, 96)
    encoding = net.encode(frames)
    assert isinstance(encoding, Encoding)
    shapes = [tuple(feature.shape) for feature in encoding.features]
    assert shapes == [(1, 8, 32, 48), (1, 8, 16, 24), (1, 12, 8, 12), (1, 16, 4, 6)]


def test_pairs_of_a_batch_do_not_mix() -> None:
    net, frames, t = small_net(), smooth_frames(4, 48, 80), torch.tensor([0.3, 0.6])
    first, second = net.encode(frames).chunk(2)
    joined = Encoding.join([*first.chunk(2), *second.chunk(2)])
    for together, apart in zip(net.encode(frames).features, joined.features, strict=True):
        torch.testing.assert_close(together, apart)
    state = net.coarse(first, second, net.find(frames[:2], frames[2:], t), t)
    assert state.flow.shape == (2, 4, 3, 5)
    alone = net(frames[1:2], frames[3:4], t[1:])
    torch.testing.assert_close(net(frames[:2], frames[2:], t).frame[1:], alone.frame, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "tiles"])
@torch.no_grad()
def test_levels_are_told_flow_within_bounds(backend: str) -> None:
    """What is told of motion that training has never shown must not be what it has never shown."""
    net, (frame0, frame1), t = small_net(), smooth_frames(2, 64, 64).split(1), torch.tensor([0.5])
    found = torch.zeros(1, 6, 32, 32)
    found[:, 0], found[:, 2] = 200, -200  # all outside, however far
    first, second = net.encode(torch.cat((frame0, frame1))).chunk(2)
    made = [
        net.interpolate(
            frame0, frame1, first, second, net.coarse(first, second, further, t), t, keep_gate(0.5), backend
        )
        for further in (found, 3 * found)
    ]
    for near, far in zip(made[0].states, made[1].states, strict=True):
        torch.testing.assert_close(near.feature, far.feature)


@pytest.mark.parametrize("bent", [True, False])
def test_flow_that_was_found_reaches_every_level(bent: bool) -> None:
    """With levels that add nothing, each level's flow is what the search found, as finely as its stride shows it."""
    whole = torch.randn(1, 6, 32, 48)
    found = Found.of(whole)
    for factor, flow in zip((1, 2, 4, 8), found.flows, strict=True):
        torch.testing.assert_close(flow, F.avg_pool2d(whole[:, :4], factor) / factor)
    assert torch.equal(torch.cat((found.prior, found.still), dim=1), whole[:, 4:])
    state = LevelState(found.flows[3], torch.zeros(1, 1, 4, 6), found, bent)
    for expected in found.flows[2::-1]:
        flow = state.enlarged()
        torch.testing.assert_close(flow, expected)
        state = LevelState(flow, state.feature, found, bent)
    torch.testing.assert_close(LevelState(state.flow, state.feature).enlarged(), 2 * upsample(state.flow))
    part = state[0:0]
    assert part.found is not None
    assert part.bent == bent
    assert not any(map(len, (part.flow, part.feature, *part.found.flows, part.found.prior, part.found.still)))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 5), (1, 4, 7, 6), (2, 2, 24, 40)])
def test_enlargement_is_that_of_torch(shape: tuple[int, ...]) -> None:
    for values in (torch.randn(shape), torch.randn(shape).mT, torch.randn(2, *shape[1:])[:1, :, :1]):
        expected = F.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=False)
        with torch.inference_mode():
            torch.testing.assert_close(upsample(values), expected)
        torch.testing.assert_close(upsample(values.clone().requires_grad_()), expected)


@pytest.mark.parametrize("kind", ["leaky", "prelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_within_products_are_those_after_them(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, activation = blocks.Conv(5, 6, stride=2).to(dtype), blocks.Activation(kind, 6)
    x, kernel = torch.randn(2, 5, 9, 12, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    rows = torch.randn(32, 5, dtype=dtype)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        torch.testing.assert_close(conv(x, activation), activation(conv(x)), rtol=close, atol=close)
        torch.testing.assert_close(
            blocks.Convolutions(conv, activation)(x), activation(conv(x)), rtol=close, atol=close
        )
        expected = activation(F.linear(rows, kernel))
        torch.testing.assert_close(blocks.linear(rows, kernel, activation), expected, rtol=close, atol=close)


@pytest.mark.parametrize("radius", [0, 2])
@pytest.mark.parametrize("moved", [0.0, 40.0])
def test_inputs_of_a_whole_level_are_those_that_are_learnt_from(radius: int, moved: float) -> None:
    """Also where flow leads out of the picture."""
    net = UGSP(dataclasses.replace(SMALL, matching_radius=(0, radius, 0, 0))).eval()
    torch.manual_seed(0)
    first, second = (net.encode(torch.rand(2, 3, 64, 96)) for _ in range(2))
    feature, flow = torch.randn(2, SMALL.encoder_channels[1], 8, 12), moved * torch.randn(2, 4, 16, 24)
    t = torch.tensor([0.25, 0.5])
    learnt = net._join(net._inputs(1, first, second, feature, flow), flow, t)
    with torch.inference_mode():
        torch.testing.assert_close(net._whole_inputs(1, first, second, feature, flow, t), learnt, rtol=1e-4, atol=1e-4)


def test_flow_is_searched_where_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A still background costs no search, and its flow is none."""
    sizes: list[tuple[int, ...]] = []

    def noted(frame0: Tensor, frame1: Tensor, looked: Sequence[Tensor]) -> Tensor:
        sizes.append(tuple(frame0.shape[-2:]))
        return inverse_search(frame0, frame1, looked=looked)

    monkeypatch.setattr(network, "inverse_search", noted)
    net, ground = small_net(), texture(256, 384)
    frames = [ground.clone() for _ in range(2)]
    for frame, left in zip(frames, (144, 152), strict=True):
        frame[..., 96:144, left : left + 48] = texture(48, 48, seed=1)
    nothing = net.match(ground, ground)
    assert nothing is not None
    assert not nothing.any()
    assert not sizes
    flow, again = net.match(frames[0], frames[1]), net.match(frames[0], frames[1], net.compare(frames[0], frames[1]))
    assert flow is not None
    assert again is not None
    assert torch.equal(flow, again)
    seen = net.match(frames[0], frames[1], None, [look(frame) for frame in frames])
    torch.testing.assert_close(seen, flow)
    # The blocks from 96 to 144 and from 144 to 208, and two more on each side.
    assert sizes == 3 * [(112, 128)]
    inside = torch.zeros(64, 96, dtype=torch.bool)
    inside[16:44, 28:60] = True
    assert not flow[..., ~inside].any()
    assert flow[0, 0, 26:34, 38:46].median() == pytest.approx(8 / 4, abs=0.1)
    assert flow[0, 2, 26:34, 40:48].median() == pytest.approx(-8 / 4, abs=0.1)
    corner = ground.clone()
    corner[..., :16, -16:] = 0
    assert net.match(ground, corner) is not None
    assert sizes[-1] == (48, 48)


@pytest.mark.parametrize("search", [True, False])
@torch.no_grad()
def test_only_levels_finer_than_a_patch_change_flow_that_was_found(search: bool) -> None:
    net = UGSP(dataclasses.replace(NetConfig(), search=search)).eval()
    frames = smooth_frames(2, 64, 96)
    t = torch.tensor([0.4])
    first, second = net.encode(frames).chunk(2)
    coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
    states = net.interpolate(frames[:1], frames[1:], first, second, coarse, t).states
    if coarse.found is None:
        assert all(bool(state.flow.any()) for state in states)
        return
    flows = coarse.found.flows[:0:-1]
    assert [torch.equal(state.flow, flow) for state, flow in zip(states, flows, strict=True)] == [True, True, False]
    assert [state.bent for state in states] == [False, False, True]


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("strip", [1, 700, 1 << 30])
def test_flow_of_a_smaller_size_moves_the_whole_frames(
    factor: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In strips as at once, and as enlarging everything does."""
    monkeypatch.setattr(warp, "STRIP", strip)
    frames = smooth_frames(4, 12 * factor, 20 * factor)
    flow, blend = 3 * torch.randn(2, 4, 12, 20), torch.rand(2, 1, 12, 20)
    made = warp.blend_enlarged(frames[:2], frames[2:], flow, blend, factor)
    whole, weight = factor * warp.upsample(flow, factor), warp.upsample(blend, factor)
    first, second = backward_warp(frames[:2], whole[:, :2]), backward_warp(frames[2:], whole[:, 2:])
    torch.testing.assert_close(made, weight * first + (1 - weight) * second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.25, 0.4, 0.5, 0.75])
def test_the_shipped_network_puts_a_moving_edge_where_it_is_at_the_instant(t: float) -> None:
    """A bright surface slides 16 pixels over a dark one: at t = 0.25 its edge lies a quarter of the way."""
    net = checkpoint.load().net
    textures = smooth_frames(2, 256, 256, seed=3)
    layers = torch.stack((0.1 + 0.25 * textures[0], 0.65 + 0.3 * textures[1]))[None]
    opacity = torch.ones(1, 2, 1, 256, 256)
    opacity[:, 1, :, :, :128] = 0
    still = torch.zeros(1, 2)
    motion = synthetic.Motion(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.0], [16.0, 0.0]]]), still, still)
    frames, _ = synthetic.render(layers, opacity, motion, torch.tensor([t]), 128)
    for gate in (None, hard_gate()):
        made = net(frames[:, 0], frames[:, 2], torch.tensor([t]), gate).frame
        rows = made[0].mean(0)[32:96]
        edge = float((rows < 0.5).float().sum(1).mean())
        assert edge == pytest.approx(64 + 16 * t, abs=0.75)


def test_the_shipped_network_finds_large_motion() -> None:
    """A pan of 80 pixels, a quarter of the picture's height."""
    net = checkpoint.load().net
    noise = torch.rand(1, 3, 80, 120, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(noise, scale_factor=8.0, mode="bicubic").clamp(0, 1)[..., :320, :]
    first, truth, second = (texture[..., left : left + 640] for left in (80, 40, 0))
    made = net(first, second, torch.tensor([0.5]))
    inner = made.flow[0, :, 96:-96, 160:-160].flatten(1).median(1).values
    assert inner.tolist() == pytest.approx([-40, 0, 40, 0], abs=2)
    error = (made.frame - truth)[..., 96:-96, 160:-160].square().mean()
    assert -10 * error.log10() > 18


def test_the_dense_network_by_tiles_is_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tiles are faster whatever is active, nothing else computes it."""
    monkeypatch.setattr("ugsp_net.sparse.winograd.pays", lambda dtype, device: True)
    net, frames, t = (
        small_net(dataclasses.replace(SMALL, widths=(12, 12, 12, 12))),
        torch.rand(2, 3, 64, 96),
        torch.tensor([0.5]),
    )
    with torch.inference_mode():
        first, second = net.encode(frames).chunk(2)
        coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], t), t)
        how = frames[:1], frames[1:], first, second, coarse, t
        reference, tiles = (net.interpolate(*how, backend=backend) for backend in ("reference", "tiles"))
    assert reference.hidden is not None
    assert tiles.hidden is None
    assert tiles.masks == ()
    torch.testing.assert_close(tiles.frame, reference.frame, atol=1e-4, rtol=1e-4)
