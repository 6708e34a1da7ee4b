"""Turn a run into weights that ship: the averaged weights, with their history and measured quality in the header.

python -m ugsp_net.training.ship RUN_FOLDER OUT.safetensors --quality benchmarks/results/quality.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from ugsp_net import checkpoint
from ugsp_net.cost import PRUNED


def revision() -> str | None:
    """The commit that is checked out, or None outside a repository."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quality", type=Path, nargs="*", default=[], help="results of benchmarks/quality.py")
    parser.add_argument("--note", help="what a reader of the header should know besides")
    parser.add_argument(
        "--gate-shift",
        type=float,
        nargs=3,
        metavar=("AT_8", "AT_4", "AT_2"),
        help="added to the biases of the mask heads of strides 8, 4 and 2: above 0 more is computed (recorded in the "
        "header)",
    )
    parser.add_argument(
        "--mix",
        nargs=2,
        metavar=("FILE", "SHARE"),
        help="mean with other weights, such as those that the run began with, which count SHARE (recorded as well)",
    )
    arguments = parser.parse_args()
    weights = checkpoint.load(arguments.run / "last.safetensors")
    provenance = dict(weights.provenance, revision=revision())
    if arguments.note:
        provenance["note"] = arguments.note
    for path in arguments.quality:
        result = json.loads(path.read_text())
        provenance[f"quality_{result['protocol']}"] = result["mean"]
    if arguments.mix:
        other, share = checkpoint.load(Path(arguments.mix[0])), float(arguments.mix[1])
        provenance["mixed"] = {"sha256": other.sha256, "share": share}
        for ours, theirs in zip(weights.net.parameters(), other.net.parameters(), strict=True):
            ours.lerp_(theirs, share)
    if arguments.gate_shift:
        provenance["gate_shift"] = arguments.gate_shift
        for index, shift in zip(PRUNED, arguments.gate_shift, strict=True):
            weights.net.gates.get_parameter(f"{index}.bias").add_(shift)
    checkpoint.save(weights.net, arguments.out, provenance)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
