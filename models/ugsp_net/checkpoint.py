"""Weights on disk: one safetensors file that says in its header what network it is and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as serialized

from ugsp_net.config import NetConfig
from ugsp_net.network import UGSP

DEFAULT = "ugsp"
"""Name of the weights that ship."""


class WeightsError(Exception):
    """Weights that cannot be found, read, or fitted into the network that their header describes."""


@dataclass(frozen=True)
class Weights:
    """A network in memory and what its file says of it."""

    net: UGSP
    """fp32, on the CPU, in evaluation mode."""
    path: Path
    sha256: str
    """Of the whole file, hexadecimal."""
    provenance: dict[str, Any]
    """How it was trained: data, samples, minutes, revision, measured quality."""


def shipped() -> dict[str, Path]:
    """The weights that ship with the tool, by name."""
    folder = resources.files("ugsp_weights")
    paths = (Path(str(entry)) for entry in folder.iterdir())
    return {path.stem: path for path in sorted(paths) if path.suffix == ".safetensors"}


def find(name: str | Path | None) -> Path:
    """The file behind a path or a shipped name (None: the default). Raises WeightsError."""
    known = shipped()
    wanted = str(name or DEFAULT)
    if wanted in known:
        return known[wanted]
    path = Path(wanted)
    if not path.is_file():
        raise WeightsError(
            f"no weights called {wanted!r}: give a .safetensors file or one of {', '.join(known) or '-'}"
        )
    return path


def load(name: str | Path | None = None) -> Weights:
    """Load weights by path or shipped name. Raises WeightsError; a missing or surplus tensor is an error."""
    path = find(name)
    try:
        with safetensors.safe_open(str(path), framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    if "config" not in header:
        raise WeightsError(f"{path} has no network configuration in its header: it was not written by ugsp")
    try:
        net = UGSP(NetConfig.from_dict(json.loads(header["config"])))
        net.load_state_dict(tensors, strict=True)
        provenance = json.loads(header.get("provenance", "{}"))
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} does not fit this version of ugsp: {' '.join(str(error).split())}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    net.requires_grad_(False)
    return Weights(net.eval(), path, digest, provenance)


def save(net: UGSP, path: Path, provenance: dict[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write weights of the given type, with the configuration and the provenance (JSON values) in the header."""
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in net.state_dict().items()}
    header = {"config": json.dumps(net.config.to_dict()), "provenance": json.dumps(provenance), "format": "pt"}
    # Not by safetensors' own way into a file, which leaves it to its owner alone.
    path = path.resolve()  # a link stays one
    partial = path.with_name(f".{path.name[:50]}.partial")
    try:
        partial.write_bytes(serialized(tensors, metadata=header))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
