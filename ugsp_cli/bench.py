"""`ugsp bench`: parse, then hand over to `timing`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from ugsp_cli.options import DocumentType, FiniteRange, NetworkChoice, Talk, network_options, talk_options

__all__ = ["bench"]

STDOUT = Path("-")


class SizeType(click.ParamType):
    """Width and height in pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Text to (width, height)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(value))
        if not found or not all(16 <= int(side) <= 16384 for side in found.groups()):
            self.fail(f"'{value}' is not a size such as 1280x720, of 16 to 16384 pixels a side", param, ctx)
        return int(found[1]), int(found[2])


@click.command()
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    multiple=True,
    default=((1280, 720),),
    metavar="WxH",
    help="Size of the pictures. May be repeated. Default: 1280x720.",
)
@click.option(
    "--density",
    "densities",
    type=FiniteRange(0, 1),
    multiple=True,
    default=(0.2, 0.35, 0.6, 1.0),
    metavar="SHARE",
    help="Share of every level's blocks that is computed. May be repeated. Default: 0.2, 0.35, 0.6 and 1.",
)
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Times each is run; medians count.")
@network_options()
@click.option(
    "--json",
    "json_file",
    type=DocumentType(),
    metavar="FILE",
    help="Write all figures as JSON; - writes to stdout instead of the table.",
)
@talk_options()
def bench(
    sizes: tuple[tuple[int, int], ...],
    densities: tuple[float, ...],
    turns: int,
    network: NetworkChoice,
    json_file: Path | None,
    talk: Talk,
) -> None:
    """Measure how fast the network is on this machine.

    Runs it dense and pruned, turn by turn in one run, on pictures as of a moving camera with masks of the given
    densities, and prints the seconds of each stage beside the share of the dense network's work (MACs) that was done.
    What it does not measure: decoding and encoding, and which masks a video gets (see `ugsp stats`).

    \b
    ugsp bench --size 1920x1080 --size 1280x720
    ugsp bench --density 0.1 --density 0.5 --json bench.json
    """
    from ugsp_cli.atomic import check_document
    from ugsp_cli.console import make_display, print_json, stdout
    from ugsp_cli.stats import write_json
    from ugsp_cli.timing import document, measure, print_timings

    if json_file is not None and json_file != STDOUT:
        check_document(json_file, "--json")
    engine = network.load()
    timings = measure(engine, sizes, densities, turns, make_display(talk.quiet))
    if json_file == STDOUT:
        print_json(document(engine, timings))
        return
    if json_file is not None:
        write_json(document(engine, timings), json_file)
    if not talk.quiet:
        print_timings(stdout(), engine, timings)
