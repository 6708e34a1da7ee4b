"""The commands: each parses, calls one library function and prints.

Nothing heavy is imported before a command runs: `ugsp --help` must not wait for torch.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ugsp_cli import __version__
from ugsp_cli.bench import bench
from ugsp_cli.errors import ExitCode, OutputError, UgspError
from ugsp_cli.evaluate import evaluate
from ugsp_cli.options import (
    EncodeChoice,
    NetworkChoice,
    RateChoice,
    SceneChoice,
    Talk,
    encode_options,
    network_options,
    rate_options,
    scene_options,
    stats_option,
    talk_options,
)
from ugsp_cli.train import train

if TYPE_CHECKING:
    from ugsp_cli.media import MediaInfo
    from ugsp_cli.pipeline import Job
    from ugsp_cli.stats import JobStats

__all__ = ["cli"]

STDOUT = Path("-")


class ErrorHandlingGroup(click.Group):
    """The one place where errors become messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            code = _report_interrupt()
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `ugsp stats ... | head`: click ends quietly
            code = _report(error)
        return ctx.exit(code)


def _report_interrupt() -> int:
    from ugsp_cli.console import print_note

    print_note("interrupted; no unfinished output was left behind")
    return ExitCode.INTERRUPTED


def _report(error: Exception) -> int:
    from ugsp_cli.console import report_bug, report_error

    if isinstance(error, OSError) and not isinstance(error, UgspError):
        # The operating system's own words (a full disk, a folder that went away) are clear enough.
        error = UgspError(str(error)).with_traceback(error.__traceback__)
    if isinstance(error, UgspError):
        report_error(error)
        return error.exit_code
    report_bug(error)
    return ExitCode.FAILED


@click.group(cls=ErrorHandlingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ugsp")
def cli() -> None:
    """Give video more frames per second.

    ugsp computes the frames between the frames with a neural network, and skips the parts of that work which the
    picture does not need: still backgrounds, plain surfaces, slow motion. It says how much it skipped.

    \b
    Start with:   ugsp interpolate holiday.mp4 --fps 60
    A folder:     ugsp batch videos/ smooth/ --fps 60
    Slow motion:  ugsp interpolate goal.mp4 --slow-motion 4
    Trouble:      ugsp doctor

    `ugsp COMMAND --help` tells more about each command.
    """
    from ugsp_net.allocator import keep_freed_memory

    keep_freed_memory()  # before there are other threads, whose first memory makes a heap of its own


@cli.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="OUTPUT",
    type=click.Path(path_type=Path),
    help="The file to write; its ending chooses the container (mp4, mkv, mov, webm). "
    "Default: beside the input, as NAME.60fps.mp4.",
)
@rate_options()
@network_options()
@encode_options()
@scene_options()
@click.option("-y", "--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be done, but do nothing.")
@stats_option()
@talk_options()
def interpolate(
    source: Path,
    output: Path | None,
    rate: RateChoice,
    network: NetworkChoice,
    encode: EncodeChoice,
    scene: SceneChoice,
    overwrite: bool,
    dry_run: bool,
    stats_file: Path | None,
    talk: Talk,
) -> None:
    """Raise the frame rate of one video, or slow it down.

    Sound, subtitles, chapters and tags are copied as they are. The output lasts as long as the input; frames of the
    input whose instants fit the new rate are kept, all others are made. Nothing is interpolated across a scene cut.

    \b
    ugsp interpolate in.mp4 --fps 60
    ugsp interpolate in.mkv -o out.mkv --fps 59.94 --codec libx265 --crf 20
    ugsp interpolate in.mp4 --slow-motion 4
    """
    from ugsp_cli.media import probe
    from ugsp_cli.naming import default_output
    from ugsp_cli.pipeline import check_job

    output = output or default_output(source, rate.wish().resolve(probe(source).rate)[0])
    job = _Plan(rate, scene, encode).job(source, output, overwrite)
    _check_stats_file(stats_file, source, output)
    info = check_job(job)
    if dry_run:
        network.load()
        _print_plan(job, info)
        return
    _print_result(_run(job, network, talk), stats_file, talk)


@cli.command()
@click.argument("source", metavar="INPUT_DIR", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUTPUT_DIR", type=click.Path(path_type=Path))
@rate_options()
@click.option("--recursive", is_flag=True, help="Go into folders within the folder; the output has the same tree.")
@click.option("--glob", "pattern", metavar="PATTERN", help="Only files whose names match, for example '*.mkv'.")
@network_options()
@encode_options()
@scene_options()
@click.option("-y", "--overwrite", is_flag=True, help="Replace outputs that were made in another way.")
@click.option("--dry-run", is_flag=True, help="Say what would be done with each file, but do nothing.")
@stats_option()
@talk_options()
def batch(
    source: Path,
    target: Path,
    rate: RateChoice,
    recursive: bool,
    pattern: str | None,
    network: NetworkChoice,
    encode: EncodeChoice,
    scene: SceneChoice,
    overwrite: bool,
    dry_run: bool,
    stats_file: Path | None,
    talk: Talk,
) -> None:
    """Convert all videos of a folder.

    Outputs have the names of their inputs. A file that fails does not stop the rest; the exit code is then 1. Run the
    same command again to go on where it stopped: outputs that were finished from the same input with the same settings
    are skipped.

    \b
    ugsp batch videos/ smooth/ --fps 60
    ugsp batch videos/ smooth/ --multiplier 2 --recursive --glob '*.mkv'
    """
    from ugsp_cli.console import make_display, print_json, stdout
    from ugsp_cli.encoders import check_encoder
    from ugsp_cli.folder import RECORD_NAME, FileResult, Task, convert_folder, fingerprint, make_folder, plan_folder
    from ugsp_cli.pipeline import check_job, run_job
    from ugsp_cli.stats import SCHEMA, write_json
    from ugsp_cli.tables import print_file, print_folder, print_job

    tasks = plan_folder(source, target, recursive=recursive, pattern=pattern)
    plan = _Plan(rate, scene, encode)
    ours = (path for task in tasks for path in (task.input, task.output))
    _check_stats_file(stats_file, *ours, target / RECORD_NAME)
    if encode.codec is not None:
        check_encoder(encode.codec)
    engine = network.load()
    display = make_display(talk.quiet)
    mark = fingerprint(plan.job(source, target), engine.weights_sha256, network.picture_settings())

    def check(task: Task, replace: bool) -> None:
        check_job(plan.job(task.input, task.output, replace), new_folder=True)

    def convert(task: Task, replace: bool) -> JobStats:
        make_folder(task.output.parent)
        label = f"{tasks.index(task) + 1}/{len(tasks)} {task.name}"
        return run_job(plan.job(task.input, task.output, replace, label), engine, display)

    results: list[FileResult] = []
    tables = not talk.quiet and stats_file != STDOUT
    try:
        for result in convert_folder(tasks, target, mark, check if dry_run else convert, overwrite=overwrite):
            results.append(result)
            if tables:
                print_file(stdout(), result)
                if talk.verbose and result.stats is not None:
                    print_job(stdout(), result.stats, verbose=True)
    finally:
        # Also after Ctrl-C: what was done until then is worth knowing.
        if tables and results:
            print_folder(stdout(), results)
        document = {"schema": SCHEMA, "files": [result.to_json() for result in results]}
        if stats_file == STDOUT:
            print_json(document)
        elif stats_file is not None:
            write_json(document, stats_file)
    if any(result.status == "failed" for result in results):
        click.get_current_context().exit(ExitCode.FAILED)


@cli.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@rate_options(slow_motion=False)
@network_options()
@scene_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@stats_option()
@talk_options()
def stats(
    source: Path,
    rate: RateChoice,
    network: NetworkChoice,
    scene: SceneChoice,
    as_json: bool,
    stats_file: Path | None,
    talk: Talk,
) -> None:
    """Show what would be skipped, without writing a video.

    Prints the share of the network's work that was skipped, per level and over time. Everything runs as in
    `ugsp interpolate`, except for the encoder.
    """
    if as_json and stats_file is not None:
        raise click.UsageError("Give --json (to stdout) or --stats FILE, not both.")
    stats_file = STDOUT if as_json else stats_file
    _check_stats_file(stats_file, source)
    job = _Plan(rate, scene).job(source, None)
    _print_result(_run(job, network, talk), stats_file, talk, over_time=True)


@cli.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info(source: Path, as_json: bool) -> None:
    """Show what is in a video file, as ugsp reads it."""
    from ugsp_cli.console import print_json, stdout
    from ugsp_cli.describe import media_document, print_media
    from ugsp_cli.media import probe

    media = probe(source)
    if as_json:
        print_json(media_document(media))
    else:
        print_media(stdout(), media)


@cli.command()
@network_options()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(network: NetworkChoice, as_json: bool) -> None:
    """Check the installation.

    Looks at versions, processor, graphics cards, encoders and weights. The exit code is 1 where something that ugsp
    needs is missing.
    """
    from ugsp_cli.console import print_json, stdout
    from ugsp_cli.doctor import examine
    from ugsp_cli.tables import print_checks

    checks = examine(network.load)
    if as_json:
        print_json({"schema": 1, "checks": [check.to_json() for check in checks]})
    else:
        print_checks(stdout(), checks)
    if any(check.status == "problem" for check in checks):
        click.get_current_context().exit(ExitCode.FAILED)


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("ugsp-demo"))
@network_options()
@talk_options()
def demo(folder: Path, network: NetworkChoice, talk: Talk) -> None:
    """Make a short clip with sound, and interpolate it to 60 fps.

    Both files lie in FOLDER (default: ugsp-demo) afterwards; those of an earlier demo are replaced.
    """
    from fractions import Fraction

    from ugsp_cli.console import make_display
    from ugsp_cli.demo import is_demo, make_clip
    from ugsp_cli.pipeline import run_job

    clip, smooth = folder / "clip.mp4", folder / "clip.60fps.mp4"
    for path in (clip, smooth):
        if path.exists() and not is_demo(path):
            raise OutputError(f"{path} is not of an earlier demo", "Name another folder, or delete it.")
    engine = network.load()
    folder.mkdir(parents=True, exist_ok=True)
    plan = _Plan(RateChoice(fps=Fraction(60)), SceneChoice())
    stats = run_job(plan.job(make_clip(clip), smooth, overwrite=True), engine, make_display(talk.quiet))
    _print_result(stats, None, talk)


cli.add_command(bench)
cli.add_command(train)
cli.add_command(evaluate)


@dataclass(frozen=True)
class _Plan:
    """The choices that all files of a command share."""

    rate: RateChoice
    scene: SceneChoice
    encode: EncodeChoice = field(default_factory=EncodeChoice)

    def job(self, source: Path, output: Path | None, overwrite: bool = False, label: str = "") -> Job:
        """The job for one file."""
        from ugsp_cli.pipeline import Job

        return Job(
            source,
            output,
            self.rate.wish(),
            self.encode.encode_options(),
            overwrite=overwrite,
            scene_threshold=self.scene.threshold,
            label=label,
        )


def _run(job: Job, network: NetworkChoice, talk: Talk) -> JobStats:
    """Load the network and run one job."""
    from ugsp_cli.console import make_display
    from ugsp_cli.pipeline import run_job

    return run_job(job, network.load(), make_display(talk.quiet))


def _check_stats_file(stats_file: Path | None, *others: Path) -> None:
    """Find out before the work, not after it, that its statistics cannot be written. Raises OutputError."""
    from ugsp_cli.atomic import check_document

    if stats_file is not None and stats_file != STDOUT:
        check_document(stats_file, "--stats", *others)


def _print_plan(job: Job, info: MediaInfo) -> None:
    from ugsp_cli.console import stdout
    from ugsp_cli.pipeline import expected_frames
    from ugsp_cli.tables import print_plan

    rate, slowdown = job.rate.resolve(info.rate)
    print_plan(stdout(), job, info, rate, expected_frames(info, rate, slowdown))


def _print_result(stats: JobStats, stats_file: Path | None, talk: Talk, over_time: bool = False) -> None:
    """Notes to stderr; the statistics to their file, or as tables or JSON to stdout."""
    from ugsp_cli.console import print_json, print_note, stdout
    from ugsp_cli.stats import write_json
    from ugsp_cli.tables import print_job, print_over_time

    if not talk.quiet:
        for note in stats.notes:
            print_note(note)
    if stats_file == STDOUT:
        print_json(stats.to_json())
        return
    if stats_file is not None:
        write_json(stats.to_json(), stats_file)
    if not talk.quiet:
        print_job(stdout(), stats, talk.verbose)
        if over_time:
            print_over_time(stdout(), stats)
