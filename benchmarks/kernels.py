"""Time pruned levels by density, on each backend, beside their convolutions alone, unpruned, in cuDNN or oneDNN.

    python benchmarks/kernels.py [--sizes 1280x720,1920x1080] [--densities 10,20,...,100] [--backends reference,tiles]
                                 [--batch 1] [--masks clustered|scattered] [--json FILE]
    python benchmarks/kernels.py --tune [--json FILE]

A level's input is random and at hand, and every call reads another one than the call before. TFLOP/s count two
operations for each multiply-accumulate at active positions. "triton, graph" replays a CUDA graph: what the device needs
without what the host takes to launch it. With --tune each of Triton's matrix products is timed at the last of the sizes
with every candidate, at full and at a third of the density, and what to put into ``triton_level.TUNED`` is printed.

Needs torch and this repository's ``models`` folder only, so that it runs where the tool is not installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    import ugsp_net  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from ugsp_net.blocks import Level
from ugsp_net.config import STRIDES, NetConfig
from ugsp_net.network import UGSP
from ugsp_net.sparse import BACKENDS, run_level, why_not
from ugsp_net.sparse.triton_level import TUNED, BlockList, Choice, Weights, pack, pack_last, padded, product

PRUNED = (2, 1, 0)
"""Levels, coarse to fine, as indices into STRIDES."""
COPIES = 3
"""Inputs taken in turn."""
WAVES = (1, 2, 3, 4, 8, 16)
"""Programs for each multiprocessor that --tune tries."""


def timed(run: Callable[[int], Any], device: torch.device, *, least: float, turns: int) -> float:
    """Median seconds of one call; ``run`` gets the number of the call. Each turn takes at least ``least`` seconds."""
    run(0)
    synchronise(device)
    begun = time.perf_counter()
    run(1)
    synchronise(device)
    calls = max(1, min(200, round(least / max(1e-6, time.perf_counter() - begun))))
    taken: list[float] = []
    for _ in range(turns):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for call in range(calls):
                run(call)
            end.record()
            torch.cuda.synchronize(device)
            taken.append(start.elapsed_time(end) / 1000 / calls)
        else:
            begun = time.perf_counter()
            for call in range(calls):
                run(call)
            taken.append((time.perf_counter() - begun) / calls)
    return float(statistics.median(taken))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def graphed(run: Callable[[int], Any], device: torch.device) -> Callable[[int], Any]:
    """The same as replays of CUDA graphs: what the device needs, without what the host takes to launch it."""
    graphs = []
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        run(0)
    torch.cuda.synchronize(device)
    for copy in range(COPIES):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run(copy)
        graphs.append(graph)
    return lambda call: graphs[call % COPIES].replay()


def make_mask(rows: int, columns: int, batch: int, density: float, kind: str, device: torch.device) -> Tensor:
    """[batch, 1, rows, columns] with the given share of active blocks in every picture, in patches or anywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch, 1, rows, columns, generator=generator)
    if kind == "clustered":
        coarse = torch.rand(batch, 1, rows // 6 + 2, columns // 6 + 2, generator=generator)
        noise = F.interpolate(coarse, (rows, columns), mode="bicubic", align_corners=False) + 0.05 * noise
    flat = noise.flatten(1)
    chosen = flat.topk(round(density * flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter_(1, chosen, 1.0).view_as(noise).to(device)


def level_of(net: UGSP, index: int, size: tuple[int, int]) -> tuple[Level, int, int, int]:
    """A level, its height and width in positions, and the side of its blocks."""
    level = net.levels[index]
    assert isinstance(level, Level)
    alignment = net.config.alignment
    width, height = (-(-pixels // alignment) * alignment // STRIDES[index] for pixels in size)
    return level, height, width, net.config.grid_stride(index) // STRIDES[index]


def macs(level: Level) -> tuple[int, int]:
    """Multiply-accumulates of one position: the 3x3 convolutions, and the projection."""
    layers = [conv for conv, _ in level.layers]
    return sum(9 * conv.in_channels * conv.out_channels for conv in layers), level.project.weight.numel()


def by_density(
    net: UGSP, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for index in PRUNED:
            level, height, width, side = level_of(net, index, size)
            inputs, batch = level.head.in_channels, arguments.batch
            shape = (batch, height, width, padded(inputs))
            wide = [torch.randn(shape, device=device).to(dtype).permute(0, 3, 1, 2) for _ in range(COPIES)]
            narrow = [x[:, :inputs].contiguous(memory_format=torch.channels_last) for x in wide]
            hidden = torch.randn(batch, height, width, level.width, device=device).to(dtype).permute(0, 3, 1, 2)
            positions = batch * height * width
            convolutions, projection = macs(level)

            def alone(call: int, level: Level = level, narrow: list[Tensor] = narrow, hidden: Tensor = hidden) -> None:
                level.head(narrow[call % COPIES])
                for conv in level.convs:
                    conv(hidden)

            timing = {"least": arguments.least, "turns": arguments.turns}
            seconds = timed(alone, device, **timing)
            common = {"size": "x".join(map(str, size)), "stride": STRIDES[index], "batch": batch}
            report(
                records, common | {"what": "convolutions alone"}, 1.0, seconds, 2 * convolutions * positions, seconds
            )
            for density in arguments.densities:
                mask = make_mask(height // side, width // side, batch, density / 100, arguments.masks, device)
                share = float(mask.mean())
                for backend in arguments.backends:

                    def run(
                        call: int,
                        level: Level = level,
                        mask: Tensor = mask,
                        backend: str = backend,
                        given: list[Tensor] = wide if backend == "triton" else narrow,
                    ) -> Tensor:
                        return run_level(level, given[call % COPIES], mask, backend)

                    work = round(2 * (convolutions + projection) * positions * share)
                    named = common | {"what": backend}
                    report(records, named, share, timed(run, device, **timing), work, seconds)
                    if device.type == "cuda" and backend == "triton":
                        replayed = timed(graphed(run, device), device, **timing)
                        report(records, named | {"what": "triton, graph"}, share, replayed, work, seconds)
    return records


def report(
    records: list[dict[str, Any]], named: dict[str, Any], share: float, seconds: float, work: int, alone: float
) -> None:
    """Print a line at once, so that a run that is cut off has not been in vain, and keep it."""
    record = named | {
        "density": share,
        "seconds": seconds,
        "tflops": work / seconds / 1e12,
        "to_alone": seconds / alone,
    }
    records.append(record)
    print(
        f"{named['size']:>10} stride {named['stride']}  {named['what']:<18} {share:6.1%} {seconds * 1e3:9.3f} ms "
        f"{record['tflops']:8.2f} TFLOP/s {record['to_alone']:6.2f} of the convolutions alone",
        flush=True,
    )


@dataclass
class Job:
    """A matrix product to tune."""

    kind: str
    source: Tensor
    weights: Weights
    target: Tensor
    head: bool
    width: int
    """Of the level, in positions."""
    masks: list[tuple[float, BlockList]]
    """Densities, and the blocks that are active."""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.kind, self.source.shape[-1], self.weights.matrix.shape[1]

    def run(self, blocks: BlockList, choice: Choice) -> None:
        given = self.kind, self.source, self.weights, self.target, blocks, self.width
        product(*given, head=self.head, choice=choice)

    def work(self, share: float) -> float:
        """Operations at a density."""
        terms = self.source.shape[0] if self.kind == "project" else 9
        return 2 * share * self.target.shape[0] * terms * self.source.shape[-1] * self.target.shape[1]


def candidates(columns: int) -> list[Choice]:
    """Ways to cut a product into whole rows of columns, as far as 128 of them go."""
    wide = min(128, 1 << max(4, (columns - 1).bit_length()))
    steps = {
        (64, 4): ((64, 1), (64, 3)),
        (128, 4): ((64, 1), (64, 2), (64, 3), (32, 4), (128, 2)),
        (128, 8): ((64, 1), (64, 3)),
        (256, 8): ((64, 1), (64, 3), (32, 4)),
    }
    chosen = [Choice(tile[0], wide, step[0], tile[1], step[1]) for tile, options in steps.items() for step in options]
    return [choice for choice in chosen if wide < 128 or choice.block_k < 128]  # those run out of registers


def jobs(net: UGSP, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Job]:
    for index in PRUNED:
        level, height, width, side = level_of(net, index, arguments.sizes[-1])
        packed = pack(level, dtype)
        positions = arguments.batch * height * width
        masks = []
        for density in (1.0, 0.35):
            mask = make_mask(height // side, width // side, arguments.batch, density, arguments.masks, device)
            masks.append((float(mask.mean()), BlockList(mask, side)))
        given = torch.randn(positions, padded(level.head.in_channels), device=device).to(dtype)
        layers = torch.randn(len(packed.layers), positions, padded(level.width), device=device).to(dtype)
        one = torch.empty_like(layers[0])
        yield Job("conv", given, packed.layers[0], one, True, width, masks)
        yield Job("conv", layers[0], packed.layers[1], one, False, width, masks)
        if index > 0:
            yield Job(
                "project", layers, packed.projection, one.new_empty(positions, level.outputs), False, width, masks
            )
            continue
        last = pack_last(level, net.synthesis, dtype)
        projected = layers.new_zeros(positions, padded(level.outputs))
        yield Job("project", layers, last.projection, projected, False, width, masks)
        squares = layers.new_empty(positions, 4 * net.synthesis.OUTPUTS)
        yield Job("conv", projected, last.enlarge, squares, True, width, masks)


def tune(net: UGSP, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Time every candidate. The programs for each multiprocessor are chosen last, for the best of them."""
    from ugsp_net.sparse import triton_kernels

    records: list[dict[str, Any]] = []

    def seconds(job: Job, choice: Choice) -> float:
        """The sum over the densities; infinite where the candidate does not fit the card."""
        taken = []
        for share, blocks in job.masks:

            def run(_: int, blocks: BlockList = blocks) -> None:
                job.run(blocks, choice)

            try:
                taken.append(timed(run, device, least=arguments.least, turns=3))
            except triton_kernels.triton.runtime.OutOfResources as error:
                print(f"{job.key} {choice}: {error}", flush=True)
                return float("inf")
            rate = job.work(share) / taken[-1] / 1e12
            named = {"key": job.key, "choice": vars(choice), "density": share}
            records.append(named | {"seconds": taken[-1], "tflops": rate})
        print(f"{job.key} {choice}: " + ", ".join(f"{one * 1e6:.1f} us" for one in taken), flush=True)
        return sum(taken)

    best: dict[tuple[str, int, int], Choice] = {}
    for job in jobs(net, arguments, device, dtype):
        times = {choice: seconds(job, choice) for choice in candidates(job.weights.matrix.shape[1])}
        fastest = min(times, key=lambda choice: times[choice])
        times = {choice: seconds(job, choice) for choice in (replace(fastest, waves=count) for count in WAVES)}
        best[job.key] = min(times, key=lambda choice: times[choice])
        print(f"best of {job.key}: {best[job.key]}", flush=True)
    print("TUNED = {\n" + "".join(f"    {key}: {choice},\n" for key, choice in best.items()) + "}")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1280x720,1920x1080")
    parser.add_argument("--densities", default=",".join(str(share) for share in range(10, 101, 10)), help="in percent")
    parser.add_argument("--backends", help="default: all that can run")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--masks", choices=("clustered", "scattered"), default="clustered")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--least", type=float, default=0.05, help="seconds a turn takes at least")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
    arguments.densities = [float(share) for share in arguments.densities.split(",")]
    reasons = {backend: why_not(backend, device) for backend in BACKENDS}
    if arguments.backends is None:
        arguments.backends = [backend for backend in BACKENDS if reasons[backend] is None]
    else:
        arguments.backends = arguments.backends.split(",")
    for backend in [*arguments.backends, *(["triton"] if arguments.tune else [])]:
        if backend not in BACKENDS or reasons[backend] is not None:
            parser.error(f"the backend {backend} cannot run: {reasons.get(backend, 'there is none of this name')}")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[arguments.precision]
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the dense convolution gets its best algorithm
    net = UGSP(NetConfig()).eval().requires_grad_(False).to(device, dtype)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {arguments.precision}, batch {arguments.batch}, {arguments.masks} masks")
    with torch.inference_mode():
        records = (tune if arguments.tune else by_density)(net, arguments, device, dtype)
    if arguments.json:
        machine = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
        choices = {str(key): vars(choice) for key, choice in TUNED.items()}
        settings = {"precision": arguments.precision, "masks": arguments.masks, "tuned": choices}
        arguments.json.write_text(json.dumps({"machine": machine} | settings | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
