"""The rendering kernel against torch: on a CUDA device, and interpreted where triton is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests import interpreter
from tests.nets import small_net
from tests.test_triton import DEVICE, INTERPRETED, kernels, needs_triton
from ugsp_net import rendering
from ugsp_net.compiled import only_torch
from ugsp_net.masks import enlarge
from ugsp_net.sparse import ConstantOutput, DenseOutput, LastOutput
from ugsp_net.sparse.squares import SquaresOutput

NAN = float("nan")
TYPES = {"squares": torch.float32, "bf16 squares": torch.bfloat16, "fp16 squares": torch.float16}
KINDS = (*TYPES, "all squares", "dense", "constant", "other")


@dataclass(frozen=True)
class Turned:
    """A ``LastOutput`` that nothing is known of, in another layout than the kernel reads."""

    across: Tensor
    """[B, 8, W, H] fp32."""

    def part(self, rows: slice, columns: slice) -> Tensor:
        return self.across.mT[:, :, rows, columns]

    def lines(self, picture: int) -> tuple[Tensor, ...]:
        raise AssertionError


@dataclass
class Scene:
    """What is rendered."""

    frame0: Tensor
    frame1: Tensor
    flow: Tensor
    out: LastOutput
    t: Tensor
    pace: Tensor
    prior: Tensor | None
    still: Tensor | None

    def put(self, put_rendered: Callable[..., None], picture: Tensor, moving: Tensor | None) -> Tensor:
        with torch.inference_mode():
            how = self.t, self.pace, self.prior, self.still
            put_rendered(picture, self.frame0, self.frame1, self.flow, self.out, *how, moving)
        return picture


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes long where it is interpreted."""
    if INTERPRETED:
        from ugsp_net.gpu import rendering as gpu_rendering

        monkeypatch.setattr(gpu_rendering, "ROWS", 16)


def last_output(kind: str, batch: int, height: int, width: int) -> LastOutput:
    """One of every kind, on the device; squares where none are computed are no numbers."""
    if kind == "dense":
        return DenseOutput(torch.randn(batch, 8, height, width).to(DEVICE))
    if kind == "other":
        return Turned(torch.randn(batch, 8, width, height).to(DEVICE))
    if kind == "constant":
        net = small_net()
        net.synthesis.enlarge.weight.data.mul_(20)
        torch.nn.init.normal_(net._level(0).project.bias)  # type: ignore[arg-type]
        net.to(DEVICE)
        return ConstantOutput(net._level(0), net.synthesis, batch, height // 2, width // 2)
    squares, bands = torch.randn(batch, height // 2, width // 2, 32), torch.randn(8, 8, width)
    bands[:, [1, 4, 5, 6]] = NAN
    if kind == "all squares":
        return SquaresOutput(squares.to(DEVICE), None, (NAN * bands).to(DEVICE))
    reached = (torch.rand(batch, 1, height // 8, width // 8) > 0.5).float()
    squares[enlarge(reached, 4)[:, 0] == 0] = NAN
    return SquaresOutput(squares.to(DEVICE, TYPES[kind]), reached.to(DEVICE), bands.to(DEVICE))


def scene(kind: str = "squares", height: int = 32, width: int = 48, batch: int = 2, longest: float = 6) -> Scene:
    """Everything there is, at random and at other instants in each picture, in frames of one piece."""
    torch.manual_seed(0)
    frame0, frame1 = torch.rand(2, batch, 3, height, width).to(DEVICE)
    flow, prior = torch.randn(batch, 5, height // 2, width // 2).to(DEVICE).split((4, 1), dim=1)
    still = torch.rand(batch, 1, height // 2, width // 2)
    t, pace = torch.linspace(0.3, 0.6, batch), torch.rand(batch, 4, 1, 1)
    still = (still * (still > 0.8)).to(DEVICE)
    out = last_output(kind, batch, height, width)
    return Scene(frame0, frame1, longest * flow, out, t.to(DEVICE), pace.to(DEVICE), prior, still)


def ragged(batch: int, rows: int, columns: int) -> Tensor:
    """Blocks that move, in no order; the last picture has none."""
    moving = (torch.rand(batch, 1, rows, columns) > 0.6).float()
    moving[0, 0, -1, -1], moving[-1] = 1, 0
    return moving.to(DEVICE)


def check(given: Scene, moving: Tensor | None = None, within: float = 1e-4) -> None:
    """Put into a part of a larger picture: the same there, and outside exactly what was there."""
    from ugsp_net.gpu import rendering as gpu_rendering

    batch, _, height, width = given.frame0.shape
    before = torch.rand(batch, 4, height + 5, width + 7).to(DEVICE)
    made, expected = before.clone(), before.clone()
    parts = [whole[:, 1:, 2:-3, 3:-4] for whole in (made, expected)]
    given.put(gpu_rendering.put_rendered, parts[0], moving)
    with only_torch():
        given.put(rendering.put_rendered, parts[1], moving)
    assert expected.isfinite().all()
    torch.testing.assert_close(made, expected, rtol=within, atol=within)
    outside = torch.ones_like(before, dtype=torch.bool)
    outside[:, 1:, 2:-3, 3:-4] = False
    assert torch.equal(made[outside], before[outside])


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 16, None])
def test_equals_torch(kind: str, side: int | None) -> None:
    check(scene(kind), None if side is None else ragged(2, 32 // side, 48 // side))


@kernels
@pytest.mark.parametrize("kind", ["all squares", "constant"])
def test_what_stands_still_is_blended(kind: str) -> None:
    given = scene(kind)
    given.frame0 = given.frame0.to(memory_format=torch.channels_last)
    check(given, torch.zeros(2, 1, 2, 3, device=DEVICE))


@kernels
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("still", [False, True])
def test_without_what_was_not_found(prior: bool, still: bool) -> None:
    given = scene()
    given.prior, given.still = given.prior if prior else None, given.still if still else None
    check(given, ragged(2, 4, 6))


@kernels
@pytest.mark.parametrize(("height", "width", "batch"), [(8, 8, 1), (16, 136, 3), (48, 80, 2)])
def test_every_size(height: int, width: int, batch: int) -> None:
    check(scene("squares", height, width, batch))


@kernels
@pytest.mark.parametrize("longest", [0.0, 100.0, 1e4, 1e30])
def test_flow_of_every_length(longest: float) -> None:
    given = scene(longest=longest)
    given.flow[..., ::3] *= -1
    # Ten thousand pixels and back are in fp32 not quite where they began.
    check(given, within=1e-2 if longest == 1e4 else 1e-4)


@kernels
def test_the_rectangles_that_are_used_in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    from ugsp_net.gpu import rendering as gpu_rendering

    monkeypatch.setattr(gpu_rendering, "ROWS", 4)
    check(scene("squares", 16, 72), ragged(2, 2, 9))


@kernels
def test_frames_in_any_layout() -> None:
    given = scene()
    wider = torch.full((2, 5, 40, 60), NAN, device=DEVICE)
    wider[:, 1:4, 5:37, 7:55] = given.frame0
    given.frame0 = wider[:, 1:4, 5:37, 7:55]
    given.frame1 = given.frame1.to(memory_format=torch.channels_last)
    given.flow = given.flow.mT.contiguous().mT
    given.pace = given.pace[:, :1, :, :]  # a network for the middle alone has one for all
    check(given)
    given.frame0 = given.frame0[:1].expand(2, -1, -1, -1)
    check(given, ragged(2, 2, 3))


@kernels
def test_nothing_is_read_where_nothing_moves() -> None:
    from ugsp_net.gpu import rendering as gpu_rendering

    given, moving = scene("squares"), ragged(2, 4, 6)
    assert isinstance(given.out, SquaresOutput)
    for values in (given.flow, given.prior, given.still, given.out.squares):
        assert values is not None
        values[1:] = NAN  # of the picture in which nothing moves at all
    picture = given.put(gpu_rendering.put_rendered, torch.full_like(given.frame0, 7), moving)
    assert picture.isfinite().all()
    blended = torch.lerp(given.frame0, given.frame1, given.t.view(-1, 1, 1, 1))
    torch.testing.assert_close(picture[1:], blended[1:])


@kernels
@pytest.mark.parametrize("number", [NAN, float("inf"), -float("inf"), 3e38])
def test_flow_that_is_no_number_reads_nothing_outside(number: float) -> None:
    """All around the frames there is what would show."""
    from ugsp_net.gpu import rendering as gpu_rendering

    given = scene("dense")
    frames = torch.full((2, 2, 5, 64, 80), NAN, device=DEVICE)
    frames[:, :, 1:4, 16:48, 16:64] = torch.stack((given.frame0, given.frame1))
    given.frame0, given.frame1 = frames[:, :, 1:4, 16:48, 16:64]
    given.flow.fill_(number)
    picture = given.put(gpu_rendering.put_rendered, torch.full_like(given.frame0, NAN), None)
    assert picture.isfinite().all()


@kernels
def test_instants_at_the_frames_themselves() -> None:
    given = scene()
    given.t = torch.tensor([0.0, 1.0], device=DEVICE)
    check(given)


@kernels
@pytest.mark.parametrize("much", [1e3, -1e3])
def test_blends_that_are_certain(much: float) -> None:
    given = scene()
    assert given.prior is not None
    given.prior.fill_(much)
    check(given)


@needs_triton
@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    """It is chosen on a device, and no call synchronises, whatever the last level puts out."""
    for kind in KINDS:
        given, moving = scene(kind, 128, 272), ragged(2, 16, 34)
        with only_torch():
            expected = given.put(rendering.put_rendered, torch.zeros_like(given.frame0), moving)
        picture = torch.zeros_like(given.frame0)
        given.put(rendering.put_rendered, picture, moving)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            given.put(rendering.put_rendered, picture, moving)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(picture, expected, rtol=1e-4, atol=1e-4)


def test_interpreted() -> None:
    """The tests above on the CPU."""
    interpreter.wait(__file__)
