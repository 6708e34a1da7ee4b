"""The paper's variants: the refinement as part of the network, and the losses and the teacher of distill and refine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.nets import SMALL, small_net, smooth_frames
from ugsp_cli.decode import Frame
from ugsp_cli.engine import EngineOptions, Interpolator, Request
from ugsp_cli.media import ColourTags, PixelLayout
from ugsp_net import checkpoint
from ugsp_net.config import NetConfig
from ugsp_net.cost import network_cost
from ugsp_net.masks import fixed_gate, hard_gate, keep_gate
from ugsp_net.network import UGSP, Encoding, Interpolation
from ugsp_net.sparse import tiles
from ugsp_net.training.variants import PrivilegedTeacher, blended, flow_distillation, geometry_consistency

REFINE = dataclasses.replace(SMALL, name="small-refine", refine=True)
HALF = torch.tensor([0.5])


def refine_net(config: NetConfig = REFINE) -> UGSP:
    """A refine net whose refinement does something."""
    net = small_net(config)
    assert net.refinement is not None
    torch.nn.init.normal_(net.refinement.last.weight, 0, 0.03)
    return net


def student(height: int = 64, width: int = 96) -> tuple[UGSP, Tensor, Interpolation, Encoding, Encoding]:
    """A network with gradients, its two frames, what it made of them, and their encodings."""
    net, frames = small_net().requires_grad_(True), smooth_frames(2, height, width)
    first, second = net.encode(frames).chunk(2)
    coarse = net.coarse(first, second, net.find(frames[:1], frames[1:], HALF), HALF)
    return net, frames, net.interpolate(frames[:1], frames[1:], first, second, coarse, HALF), first, second


# The network with a refinement


def test_a_refine_net_begins_as_the_plain_one() -> None:
    torch.manual_seed(0)
    plain, refine = UGSP(SMALL), UGSP(REFINE)
    refine.load_state_dict({**refine.state_dict(), **plain.state_dict()})
    frames = smooth_frames(4, 64, 96)
    t = torch.tensor([0.3, 0.6])
    expected, made = plain(frames[:2], frames[2:], t), refine(frames[:2], frames[2:], t)
    torch.testing.assert_close(made.frame, expected.frame, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.flow, expected.flow, atol=1e-5, rtol=0)
    assert expected.unrefined is expected.frame
    (made.frame - 0.5).square().mean().backward()
    assert refine.refinement is not None
    gradient = refine.refinement.last.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(48, 80), (64, 112)])
def test_the_refinement_changes_the_frame_alone(height: int, width: int) -> None:
    net, frames = refine_net(), smooth_frames(4, height, width)
    made = net(frames[:2], frames[2:], torch.tensor([0.3, 0.6]))
    assert made.frame.shape == made.unrefined.shape == (2, 3, height, width)
    assert made.frame.dtype == torch.float32
    change = (made.frame - made.unrefined).abs()
    assert 1e-3 < change.max() < 1
    net.refinement = None
    plain = net(frames[:2], frames[2:], torch.tensor([0.3, 0.6]))
    torch.testing.assert_close(plain.frame, made.unrefined)


def test_every_input_of_the_refinement_counts() -> None:
    net = refine_net()
    assert net.refinement is not None
    pictures, blend, flow = torch.randn(1, 12, 32, 48), torch.rand(1, 1, 32, 48), torch.randn(1, 4, 32, 48)
    contexts = [net.refinement.encode(torch.randn(1, 3, 32, 48)) for _ in range(2)]
    assert [tuple(part.shape) for part in contexts[0]] == [
        (1, 10, 16, 24),
        (1, 20, 8, 12),
        (1, 40, 4, 6),
        (1, 80, 2, 3),
    ]
    inputs = [part.clone().requires_grad_() for part in (pictures, blend, flow, *contexts[0], *contexts[1])]
    out = net.refinement(*inputs[:3], tuple(inputs[3:7]), tuple(inputs[7:]))
    out.square().sum().backward()
    for part in inputs:
        assert part.grad is not None
        assert bool((part.grad.abs().sum((0, 2, 3)) > 0).all())


def test_context_is_fetched_along_the_flow_at_every_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow of 16 pixels is one of 8, 4, 2, 1 positions of the context."""
    import ugsp_net.refinement as module

    net = refine_net()
    assert net.refinement is not None
    asked: list[float] = []
    original = module.backward_warp

    def watch(source: Tensor, flow: Tensor) -> Tensor:
        assert source.shape[-2:] == flow.shape[-2:]
        asked.append(float(flow.mean()))
        return original(source, flow)

    monkeypatch.setattr(module, "backward_warp", watch)
    context = net.refinement.encode(torch.randn(1, 3, 32, 48))
    flow = torch.tensor([16.0, 16, -16, -16]).view(1, 4, 1, 1).expand(1, 4, 32, 48)
    net.refinement(torch.randn(1, 12, 32, 48), torch.rand(1, 1, 32, 48), flow, context, context)
    assert asked == [8, -8, 4, -4, 2, -2, 1, -1]


@pytest.mark.parametrize("activation", ["leaky", "prelu"])
def test_pruned_refine_equals_reference(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PAYS_BELOW", 9.0)
    net = refine_net(dataclasses.replace(REFINE, activation=activation))
    frames, t = smooth_frames(4, 48, 80), torch.tensor([0.5, 0.3])
    first, second = net.encode(frames).chunk(2)
    coarse = net.coarse(first, second, net.find(frames[:2], frames[2:], t), t)
    torch.manual_seed(0)
    masks = [(torch.rand(2, 1, 3, 5) < share).float() for share in (0.8, 0.6, 0.6)]
    expected = net.interpolate(frames[:2], frames[2:], first, second, coarse, t, fixed_gate(masks))
    with torch.inference_mode():
        for backend in ("reference", "tiles"):
            made = net.interpolate(frames[:2], frames[2:], first, second, coarse, t, fixed_gate(masks), backend)
            torch.testing.assert_close(made.frame, expected.frame, atol=1e-5, rtol=1e-4)


def test_all_blocks_active_equals_pruning_off_for_refine() -> None:
    net, frames = refine_net(), smooth_frames(2, 64, 64)
    dense = net(frames[:1], frames[1:], HALF)
    everything = net(frames[:1], frames[1:], HALF, keep_gate(1.0))
    assert torch.equal(dense.frame, everything.frame)


def test_the_shortcut_leaves_the_refinement_out() -> None:
    net, frames, t = refine_net(), smooth_frames(2, 64, 96), torch.tensor([0.3])
    pruned = net(frames[:1], frames[1:], t, fixed_gate([torch.zeros(1, 1, 4, 6)] * 3))
    left = net.shortcut(frames[:1], frames[1:], pruned.states[0], t)
    torch.testing.assert_close(left[..., 1:-1, 1:-1], pruned.unrefined[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-4)
    assert (left - pruned.frame).abs().max() > 1e-3


def test_refine_in_bf16_and_under_autocast() -> None:
    frames = smooth_frames(2, 64, 64)
    exact = refine_net()(frames[:1], frames[1:], HALF)
    net = refine_net()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = net(frames[:1], frames[1:], HALF, hard_gate())
        dense = net(frames[:1], frames[1:], HALF)
    assert net.encode(frames).context[0].dtype == torch.float32
    cast = net.to(torch.bfloat16)(frames[:1], frames[1:], HALF)
    assert autocast.frame.dtype == dense.frame.dtype == cast.frame.dtype == torch.float32
    for made in (dense, cast):
        assert (made.frame - exact.frame).abs().mean() < 0.02


def test_encodings_divide_and_join() -> None:
    net, frames = refine_net(), smooth_frames(4, 64, 64)
    both = net.encode(frames)
    parts = both.chunk(2)
    joined = Encoding.join(parts)
    some = both.map(lambda tensor: tensor[::2])
    assert len(both.context) == len(both.features) == 4
    for whole, again, half, second in zip(
        (*both.features, *both.context),
        (*joined.features, *joined.context),
        (*some.features, *some.context),
        (*parts[1].features, *parts[1].context),
        strict=True,
    ):
        assert torch.equal(whole, again)
        assert torch.equal(whole[::2], half)
        assert torch.equal(whole[2:], second)
    plain = small_net().encode(frames)
    assert plain.context == Encoding.join(plain.chunk(2)).context == ()


def test_variants_of_the_papers_configuration() -> None:
    plain, distill, refine = (NetConfig.paper(variant) for variant in ("plain", "distill", "refine"))
    assert plain == NetConfig.paper()
    assert dataclasses.replace(distill, name=plain.name) == plain
    assert dataclasses.replace(refine, name=plain.name, refine=False) == plain
    assert (plain.name, distill.name, refine.name) == ("ugsp-paper", "ugsp-paper-distill", "ugsp-paper-refine")
    assert refine.refine
    with pytest.raises(ValueError, match="variant must be one of plain, distill, refine"):
        NetConfig.paper("rife")


def test_a_refine_net_comes_back_from_its_file(tmp_path: Path) -> None:
    net = refine_net()
    checkpoint.save(net, tmp_path / "net.safetensors", {}, torch.float32)
    loaded = checkpoint.load(tmp_path / "net.safetensors").net
    assert loaded.config == REFINE
    frames = smooth_frames(2, 64, 64)
    torch.testing.assert_close(loaded(frames[:1], frames[1:], HALF).frame, net(frames[:1], frames[1:], HALF).frame)


def test_weights_from_before_the_refinement_still_load(tmp_path: Path) -> None:
    net = small_net()
    config = net.config.to_dict()
    del config["refine"]
    save_file(
        {key: value.contiguous() for key, value in net.state_dict().items()},
        tmp_path / "old.safetensors",
        {"config": json.dumps(config), "format": "pt"},
    )
    assert checkpoint.load(tmp_path / "old.safetensors").net.config == SMALL


def test_the_engine_runs_a_refine_net(tmp_path: Path) -> None:
    path = tmp_path / "refine.safetensors"
    checkpoint.save(refine_net(), path, {}, torch.float32)
    y, x = np.mgrid[0:64, 0:96]
    frames = []
    for index in range(3):
        luma = (128 + 80 * np.sin((x - 2 * index) / 7) * np.cos(y / 5)).astype(np.uint8)
        layout, colour = PixelLayout("gray", 8, 0, 0, 1), ColourTags(1, 1, 1, 1)
        frames.append(Frame(index, Fraction(index, 24), (luma,), layout, colour, 0.0, False))
    wanted = [Request(frames[index], frames[index + 1], 0.5) for index in range(2)]
    results = []
    for size in (1, 2):
        engine = Interpolator(EngineOptions(str(path), device="cpu", precision="fp32", batch_size=size))
        results.append(engine.interpolate(wanted))
    for one, other in zip(*results, strict=True):
        assert np.abs(one.planes[0].astype(int) - other.planes[0]).max() <= 1
    cost = network_cost(REFINE, 96, 64)
    assert cost.refine > 0
    assert sum(one.dense_macs for one in results[0]) == 3 * cost.encode + 2 * cost.match + 2 * cost.dense


# UGSP-distill


def made_with(final: Tensor, states: Callable[[int], Tensor]) -> Interpolation:
    """An interpolation of 64x96 with this final flow, and these flows at strides 16, 8 and 4."""
    made: Interpolation = small_net()(torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96), HALF)
    changed = [
        dataclasses.replace(state, flow=states(stride)) for state, stride in zip(made.states, (16, 8, 4), strict=True)
    ]
    return dataclasses.replace(made, flow=final, states=tuple(changed))


def constant(value: float, stride: int = 1) -> Tensor:
    return torch.full((1, 4, 64 // stride, 96 // stride), value / stride)


def test_distillation_is_smaller_nearer_the_label() -> None:
    label, trust = constant(8.0), torch.ones(1, 1, 64, 96)

    def off_by(pixels: float) -> float:
        made = made_with(constant(8 + pixels), lambda stride: constant(8 + pixels, stride))
        return float(flow_distillation(made, label, trust))

    found = [off_by(pixels) for pixels in (0.0, 0.1, 0.5, 1.0)]
    assert found[0] == pytest.approx(4 * 1e-3, rel=1e-3)  # four scales, L1's round foot
    assert found == sorted(found)
    # Every scale is compared in pixels of the picture.
    coarse = flow_distillation(made_with(constant(8.0), lambda s: constant(8 + (s == 16), s)), label, trust)
    assert float(coarse) == pytest.approx(np.sqrt(2) + 3e-3, rel=1e-3)


def test_distillation_pulls_least_where_the_flow_insists_on_something_else() -> None:
    label, trust = constant(0.0), torch.ones(1, 1, 64, 96)
    pulls = []
    for off in (1.0, 5.0, 20.0):
        final = constant(off).requires_grad_()
        flow_distillation(made_with(final, lambda s: constant(0.0, s)), label, trust).backward()
        assert final.grad is not None
        pulls.append(float(final.grad.sum()))
    assert pulls[0] > 5 * pulls[1] > 25 * pulls[2] > 0


def test_distillation_ignores_pixels_that_are_not_trusted() -> None:
    label, trust = constant(2.0), torch.ones(1, 1, 64, 96)
    trust[..., :48] = 0
    final = constant(3.0).requires_grad_()
    flow_distillation(made_with(final, lambda s: constant(2.0, s)), label, trust).backward()
    assert final.grad is not None
    assert float(final.grad[..., :48].abs().max()) == 0
    assert float(final.grad[..., 48:].abs().min()) > 0
    bent = label.clone()
    bent[..., :48] = 50
    made = made_with(constant(3.0), lambda s: constant(2.0, s))
    assert flow_distillation(made, label, trust) == flow_distillation(made, bent, trust)


def test_geometry_is_zero_where_the_features_are_the_true_frames() -> None:
    _, frames, made, _, _ = student()
    features = [torch.nn.functional.interpolate(s.feature, scale_factor=2.0, mode="bilinear") for s in made.states]
    same = Encoding((*reversed(features), torch.zeros(1)))
    assert float(geometry_consistency(made, same).detach()) == pytest.approx(0, abs=1e-9)
    net = small_net().requires_grad_(True)
    truth = net.encode(frames[:1])
    loss = geometry_consistency(made, truth)
    assert loss > 1e-3
    gradients = torch.autograd.grad(loss, [state.feature for state in made.states])
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(geometry_consistency(made, truth), list(truth.features))


# UGSP-refine's teacher


def test_the_teacher_begins_as_the_student() -> None:
    net, frames, made, first, second = student()
    truth = net.encode(smooth_frames(1, 64, 96, seed=3))
    frame, flow = PrivilegedTeacher(SMALL)(net, made, first, second, truth, frames[:1], frames[1:], HALF)
    torch.testing.assert_close(flow, made.flow)
    torch.testing.assert_close(frame, blended(frames[:1], frames[1:], made.flow, made.blend), atol=1e-4, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_teacher_learns_from_its_frame_and_the_student_from_distil(autocast: bool) -> None:
    torch.manual_seed(0)
    teacher = PrivilegedTeacher(SMALL)
    torch.nn.init.normal_(teacher.enlarge.weight, 0, 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        net, frames, made, first, second = student()
        truth = smooth_frames(1, 64, 96, seed=3)
        frame, flow = teacher(net, made, first, second, net.encode(truth), frames[:1], frames[1:], HALF)
    assert frame.dtype == flow.dtype == torch.float32
    (frame - truth).abs().mean().backward(retain_graph=True)
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    assert all(parameter.grad is None for parameter in net.parameters())
    teacher.zero_grad(set_to_none=True)
    ours = blended(frames[:1], frames[1:], made.flow, made.blend)
    # As if the teacher had found the truth.
    PrivilegedTeacher.distil(made.flow, flow, ours, truth, truth).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    gradient = net.synthesis.enlarge.weight.grad
    assert gradient is not None
    assert float(gradient[:, :4].abs().max()) > 0
    assert float(gradient[:, 4:].abs().max()) == 0  # the frames decide where, and are not taught


def test_distil_follows_the_teacher_only_where_it_is_better() -> None:
    truth = torch.full((1, 3, 64, 96), 0.5)
    ours, theirs = truth + 0.1, truth + 0.2
    theirs[..., 48:] = 0.5  # better on the right
    flow = constant(1.0).requires_grad_()
    PrivilegedTeacher.distil(flow, constant(3.0), ours, theirs, truth).backward()
    assert flow.grad is not None
    assert float(flow.grad[..., :48].abs().max()) == 0
    assert float(flow.grad[..., 48:].max()) < 0
    coarse = constant(3.0, 8)
    near = PrivilegedTeacher.distil(coarse, constant(3.0), ours, theirs, truth)
    far = PrivilegedTeacher.distil(coarse + 1, constant(3.0), ours, theirs, truth)
    assert near < 0.11 < 3 < far


def test_a_few_steps_make_the_teacher_better_than_the_student() -> None:
    """The middle of a moving texture: a student that sees no motion, and a teacher that may look."""
    torch.manual_seed(0)
    picture = smooth_frames(1, 64, 160, seed=5)
    frame0, truth, frame1 = picture[..., 20:116], picture[..., 24:120], picture[..., 28:124]
    net = small_net()
    first, second, answer = (net.encode(frame) for frame in (frame0, frame1, truth))
    made = net(frame0, frame1, HALF)
    made = dataclasses.replace(made, flow=torch.zeros_like(made.flow), blend=torch.full_like(made.blend, 0.5))
    teacher = PrivilegedTeacher(SMALL)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        frame, flow = teacher(net, made, first, second, answer, frame0, frame1, HALF)
        loss = (frame - truth).abs().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert (
        PrivilegedTeacher.distil(made.flow, flow, blended(frame0, frame1, made.flow, made.blend), frame, truth) > 0.05
    )
