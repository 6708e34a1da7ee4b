"""`ugsp evaluate`: parse, then hand over to `evaluation`."""

from __future__ import annotations

from pathlib import Path

import click

from ugsp_cli.options import DocumentType, NetworkChoice, Talk, network_options, talk_options

__all__ = ["LAYOUT_NAMES", "evaluate"]

LAYOUT_NAMES = ("vimeo90k", "ucf101", "middlebury", "snufilm", "x4k", "triplets", "video")
"""Equals `layouts.LAYOUTS` and video, which cannot be imported here at no cost; a test compares the two."""

STDOUT = Path("-")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(LAYOUT_NAMES), required=True, help="How the data set lies in DIR.")
@network_options()
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="Only the first N samples of every split (of every video)."
)
@click.option(
    "--json",
    "json_file",
    type=DocumentType(),
    metavar="FILE",
    help="Write all figures as JSON; - writes to stdout instead of the table.",
)
@click.option(
    "--worst",
    "worst_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the samples with the lowest PSNR there, one picture each: inputs, truth, result, difference, masks.",
)
@click.option("--worst-count", type=click.IntRange(1), default=10, show_default=True, metavar="K", help="How many.")
@talk_options()
def evaluate(
    folder: Path,
    layout: str,
    network: NetworkChoice,
    limit: int | None,
    json_file: Path | None,
    worst_folder: Path | None,
    worst_count: int,
    talk: Talk,
) -> None:
    """Measure the network on a data set whose middle frames are known.

    Prints PSNR, SSIM and IE (see ugsp_net.metrics for the exact variants), the work per frame in GMACs, what of each
    level was active, and the seconds per frame.

    \b
    vimeo90k    tri_testlist.txt, sequences/00001/0001/im1.png ... (septuplets: sep_testlist.txt, from im1 and im7)
    ucf101      1/frame_00.png, 1/frame_01_gt.png, 1/frame_02.png
    middlebury  other-data/NAME/frame10.png and frame11.png, other-gt-interp/NAME/frame10i11.png
    snufilm     test-easy.txt, test-medium.txt, test-hard.txt, test-extreme.txt: three paths a line
    x4k         Type1/TEST01/0000.png ... 0032.png: seven instants of every 32 frames
    triplets    folders of three pictures each; the middle one by name is the truth
    video       videos: every second of the first 41 frames is restored

    \b
    ugsp evaluate vimeo_triplet/ --layout vimeo90k --json vimeo.json
    ugsp evaluate SNU-FILM/ --layout snufilm --limit 20 --worst worst/
    """
    from ugsp_cli.atomic import check_document, check_folder
    from ugsp_cli.console import make_display, print_json, print_note, stdout
    from ugsp_cli.errors import OutputError
    from ugsp_cli.evaluation import document, print_scores
    from ugsp_cli.evaluation import evaluate as run
    from ugsp_cli.layouts import find_samples
    from ugsp_cli.stats import write_json
    from ugsp_cli.worst import WorstCases

    items = find_samples(layout, folder, limit)
    if json_file is not None and json_file != STDOUT:
        check_document(json_file, "--json", *(path for item in items for path in item.paths))
    if worst_folder is not None and worst_folder.exists() and (worst_folder.is_file() or any(worst_folder.iterdir())):
        raise OutputError(f"{worst_folder} exists and is not an empty folder", "Name a new folder with --worst.")
    if worst_folder is not None:
        check_folder(worst_folder)
    engine = network.load()
    worst = WorstCases(worst_count) if worst_folder is not None else None
    scores = run(items, engine, make_display(talk.quiet), worst)
    if json_file == STDOUT:
        print_json(document(layout, folder, scores, engine))
    elif json_file is not None:
        write_json(document(layout, folder, scores, engine), json_file)
    if json_file != STDOUT and not talk.quiet:
        print_scores(stdout(), scores, engine.strides)
        if talk.verbose:
            stdout().print(
                f"{engine.model_name}, {engine.parameters / 1e6:.2f} M parameters, weights "
                f"{engine.weights_sha256[:12]}, on {engine.device} in {engine.precision}, backend {engine.backend}"
            )
    if worst is not None and worst_folder is not None:
        written = worst.write(worst_folder)
        if not talk.quiet:
            print_note(f"the worst {len(written)} are in {worst_folder}")
