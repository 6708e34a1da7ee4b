"""Training: exact synthetic flow, the clip bank, losses, and a run that learns, resumes and ships."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nets import SMALL, small_net, smooth_frames
from ugsp_net import checkpoint
from ugsp_net.config import STRIDES
from ugsp_net.masks import hard_gate
from ugsp_net.training import losses, ship, synthetic
from ugsp_net.training.clips import ClipBank, Shot, open_bank
from ugsp_net.training.data import Batches, BatchPlan
from ugsp_net.training.labels import ChangeLabels, UncertaintyLabels
from ugsp_net.training.trainer import TrainConfig, Trainer
from ugsp_net.warp import backward_warp


@pytest.fixture
def bank(tmp_path: Path) -> ClipBank:
    """Two shots of a smooth texture that drifts."""
    path = tmp_path / "bank.rgb"
    shots, offset = [], 0
    with path.open("wb") as out:
        for number in range(2):
            texture = smooth_frames(1, 160, 200, seed=number)[0].permute(1, 2, 0).mul(255).to(torch.uint8).numpy()
            for index in range(12):
                out.write(np.ascontiguousarray(texture[index : index + 96, 2 * index : 2 * index + 128]).tobytes())
            shots.append(Shot(f"clip{number}", offset, 12, 96, 128, 24.0))
            offset += 12 * 96 * 128 * 3
    return ClipBank(path, shots)


PLAN = BatchPlan(size=64, context=32, batch=4, longest_span=4, largest_shift=0.125, teacher=False)


def test_synthetic_flow_fetches_the_frame_at_the_instant() -> None:
    """One opaque layer: warping either outer frame by the flow gives the middle frame, at any t."""
    textures = smooth_frames(3, 128, 128)[:, None]
    generator = torch.Generator().manual_seed(0)
    motion = synthetic.random_motion(3, 1, 128, 12.0, generator)
    t = torch.tensor([0.25, 0.5, 0.8])
    frames, flow = synthetic.render(textures, torch.ones(3, 1, 1, 128, 128), motion, t, 64)
    for index, flows in ((0, flow[:, :2]), (2, flow[:, 2:])):
        fetched = backward_warp(frames[:, index], flows)
        inner = (fetched - frames[:, 1]).abs()[..., 20:-20, 20:-20]
        assert inner.max() < 0.03
    assert flow.abs().max() > 1


def test_a_moving_edge_lies_a_quarter_of_the_way_at_a_quarter() -> None:
    shift = torch.tensor([[[8.0, 0.0]]])
    motion = synthetic.Motion(torch.zeros(1, 1, 2), shift, torch.zeros(1, 1), torch.zeros(1, 1))
    textures = (torch.arange(128) >= 64).float().expand(1, 1, 3, 128, 128)
    frames, flow = synthetic.render(textures, torch.ones(1, 1, 1, 128, 128), motion, torch.tensor([0.25]), 64)
    edges = [int((frame[0, 32] > 0.5).nonzero()[0]) for frame in frames[0]]
    assert edges == [32, 34, 40]
    assert flow[0, :, 32, 34].tolist() == pytest.approx([-2, 0, 6, 0], abs=1e-4)


def test_place_and_locate_are_inverse() -> None:
    generator = torch.Generator().manual_seed(3)
    motion = synthetic.random_motion(2, 3, 64, 20.0, generator)
    points = torch.rand(2, 3, 5, 5, 2) * 64
    time = torch.tensor([0.3, 0.9])
    torch.testing.assert_close(motion.locate(time, motion.place(time, points)), points, atol=1e-3, rtol=1e-4)


def test_a_batch_depends_on_its_number_alone(bank: ClipBank) -> None:
    first, second = Batches(bank, PLAN, 7, 100), Batches(bank, PLAN, 7, 100)
    for _ in range(2):
        one, other = first[13], second[13]
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.t, other.t)
    assert not torch.equal(first[14].frames, first[13].frames)
    batch = first[0]
    assert batch.frames.shape == (4, 3, 3, 96, 96)
    assert batch.frames.dtype == torch.uint8
    assert bool(((batch.t > 0) & (batch.t < 1)).all())


def test_the_bank_splits_at_cuts_and_leaves_out_repeats(tmp_path: Path) -> None:
    import av

    folder = tmp_path / "clips"
    folder.mkdir()
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        pictures = []
        for scene in range(2):
            texture = (smooth_frames(1, 96, 256, seed=scene)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            texture = texture // 2 + 120 * scene
            pictures += [np.ascontiguousarray(texture[:, 4 * i : 4 * i + 128]) for i in range(6)]
        pictures.insert(3, pictures[2])  # a repeated frame
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    bank = open_bank(folder, tmp_path / "cache")
    assert [shot.frames for shot in bank.shots] == [6, 6]
    assert bank.frames(bank.shots[1]).shape == (6, 96, 128, 3)
    again = open_bank(folder, tmp_path / "cache")
    assert again.path == bank.path
    assert again.shots == bank.shots
    with pytest.raises(FileNotFoundError, match="no clips in"):
        open_bank(tmp_path / "cache", tmp_path / "other")


def test_losses_at_known_values() -> None:
    zero = torch.zeros(1, 3, 32, 32)
    assert losses.laplacian(zero) == 0
    assert losses.laplacian(zero + 0.5) == pytest.approx(0.5)  # a constant lives in the last level alone
    pair = torch.cat((zero + 0.1, zero + 1))
    assert losses.log_squared(pair, 0.0) == pytest.approx(math.log(0.1))  # the mean of log 0.01 and log 1
    flow = torch.ones(1, 4, 32, 32) * 4
    weight = torch.ones(1, 1, 32, 32)
    assert losses.flow_error(flow, flow, weight) < 0.11 < losses.flow_error(flow + 1, flow, weight)
    assert losses.flow_error(torch.ones(1, 4, 4, 4) / 2, flow, weight) == pytest.approx(0.1, abs=1e-2)
    features = torch.randn(1, 4, 8, 8)
    assert losses.census(features, features) == 0
    assert losses.census(features, torch.randn(1, 4, 8, 8)) > 0.01
    assert float(losses.psnr(zero, zero + 0.1)) == pytest.approx(20.0, abs=1e-3)
    # The best U is where exp(-U) error = 2.
    error = torch.full((1,), 0.1)
    best = torch.log(error / 2)
    assert all(losses.uncertainty_loss(error, best) < losses.uncertainty_loss(error, best + d) for d in (-0.1, 0.1))


def test_a_run_learns_saves_and_goes_on(bank: ClipBank, tmp_path: Path) -> None:
    config = TrainConfig(net=SMALL, plan=PLAN, steps=24, prune_from=0.5, warmup=2, rate=2e-3)
    trainer = Trainer(config, bank, tmp_path / "run", torch.device("cpu"))
    trainer.run(log_every=6)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [6, 12, 18, 24]
    assert records[-1]["psnr"] > records[0]["psnr"] + 1
    assert "loss_of_psnr" not in records[0]
    assert abs(records[-1]["loss_of_psnr"]) < 3
    loaded = checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert loaded.provenance["samples"] == 96
    other = Trainer(config, bank, tmp_path / "run", torch.device("cpu"))
    other.resume()
    assert other.step == 24
    assert other.progress == 1.0
    for one, two in zip(other.net.parameters(), trainer.net.parameters(), strict=True):
        assert torch.equal(one, two)


def test_shipping_shifts_each_gate_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, out = small_net(), tmp_path / "out.safetensors"
    checkpoint.save(net, tmp_path / "last.safetensors", {"samples": 1})
    shifts = ("--gate-shift", "2.5", "-0.25", "0.5")  # strides 8, 4, 2
    monkeypatch.setattr("sys.argv", ["ship", str(tmp_path), str(out), *shifts])
    ship.main()
    shipped = checkpoint.load(out)
    assert shipped.provenance["gate_shift"] == [2.5, -0.25, 0.5]
    for stride, shift in ((8, 2.5), (4, -0.25), (2, 0.5)):
        name = f"gates.{STRIDES.index(stride)}.bias"
        expected = net.get_parameter(name) + shift
        torch.testing.assert_close(shipped.net.get_parameter(name), expected, atol=2e-3, rtol=0)  # kept in fp16


def test_labels_follow_the_uncertainty() -> None:
    labeller = UncertaintyLabels(SMALL, (0.7, 0.55, 0.45), 0.5)
    log_scale = torch.full((2, 1, 64, 64), -6.0)
    log_scale[:, :, :32, :32] = -2.0
    log_scale += 0.1 * torch.rand_like(log_scale)
    labels = labeller.cut(log_scale, torch.tensor([True, True]))
    assert [label.shape for label in labels] == [(2, 1, 4, 4)] * 3
    shares = [float(label.mean()) for label in labels]
    assert shares == pytest.approx([0.7, 0.55, 0.45], abs=0.08)
    assert all(bool((label[:, :, :2, :2] == 1).all()) for label in labels)


def test_labels_keep_the_blocks_that_the_levels_change() -> None:
    net, frames, t = small_net(), smooth_frames(2, 64, 64), torch.tensor([0.5])
    full = net(frames[:1], frames[1:], t)
    truth, real = full.frame + 0.01, torch.tensor([True])
    labeller = ChangeLabels(SMALL, compute=0.5, relative=0.0)
    missed = [
        torch.nn.functional.avg_pool2d(
            (net.shortcut(frames[:1], frames[1:], state, t) - full.frame).square().mean(1, keepdim=True), 16
        )
        for state in full.states
    ]
    price = float(missed[2].median()) / (labeller.costs[3] - labeller.costs[2])
    labeller.price.fill_(price)
    labels = labeller(net, full, frames[:1], truth, frames[1:], t, real)
    # A block is kept to the end exactly where that is the cheapest of its four stops.
    totals = [change + price * cost for change, cost in zip([*missed, 0 * missed[0]], labeller.costs, strict=True)]
    best = torch.stack([total.expand(1, 1, 4, 4) for total in totals]).argmin(0)
    for index, keep in enumerate(labels.keep):
        assert torch.equal(keep, (best > index).float())
    assert 0 < float(labels.keep[2].mean()) < 1
    kept = net(frames[:1], frames[1:], t, hard_gate()).masks
    assert labels.density.tolist() == pytest.approx([float(mask.mean()) for mask in kept])
    # The price rises while the gates keep too much, and falls while they keep too little.
    too_much = float((torch.tensor(labeller.costs).diff() * labels.density).sum()) > labeller.compute
    assert (float(labeller.price) > price) == too_much
    labeller.price.fill_(1e6)  # too dear for anything
    labels = labeller(net, full, frames[:1], truth, frames[1:], t, real)
    assert not any(bool(keep.any()) for keep in labels.keep)


@pytest.mark.parametrize("labels", ["change", "uncertainty"])
def test_both_kinds_of_labels_train_and_resume(labels: str, bank: ClipBank, tmp_path: Path) -> None:
    config = TrainConfig(net=SMALL, plan=PLAN, steps=3, prune_from=0.3, labels=labels)
    trainer = Trainer(config, bank, tmp_path / "run", torch.device("cpu"))
    trainer.run(log_every=1)
    other = Trainer(config, bank, tmp_path / "run", torch.device("cpu"))
    other.resume()
    for name, value in trainer.objective.labeller.state_dict().items():
        assert torch.equal(value, other.objective.labeller.state_dict()[name])
