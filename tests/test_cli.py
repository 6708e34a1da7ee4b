"""The command line as its users meet it: exit codes, messages, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.clips import Clip, Sound, make_clip
from tests.fakes import FakeEngine
from ugsp_cli import __version__, media, options, pipeline
from ugsp_cli import engine as engine_module
from ugsp_cli.cli import cli
from ugsp_cli.errors import UgspError

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Stand in for the network."""
    engine = FakeEngine()
    monkeypatch.setattr(engine_module, "load_interpolator", lambda options: engine)
    return engine


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong must be found before the network is loaded."""

    def load(options: engine_module.EngineOptions) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(engine_module, "load_interpolator", load)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Half a second at 24 fps."""
    return make_clip(tmp_path / "clip.mp4", Clip())


def ugsp(*arguments: str | Path) -> Result:
    """Run in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def process(*arguments: str | Path, module: str = "ugsp_cli", seconds: float = 0.0) -> subprocess.Popen[str]:
    """Run in a process of its own. seconds: how long the stand-in of `tests.fakes` takes over a batch."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "models")]),
        "FAKE_ENGINE_SECONDS": str(seconds),
    }
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; begin = time.perf_counter()\n"
        "from ugsp_cli.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'av', 'rich'} & set(sys.modules)\n"
        "print(time.perf_counter() - begin, heavy, file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        taken, loaded = done.stderr.split(maxsplit=1)
        assert loaded.strip() == "set()"
        assert "ugsp interpolate holiday.mp4 --fps 60" in done.stdout
        seconds.append(float(taken))
    assert min(seconds) < 0.3


def test_what_is_wrong_is_said_before_torch_is_imported(clip: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ugsp_cli.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    for source, output in ((tmp_path / "missing.mp4", "out.mp4"), (clip, "out.txt")):
        arguments = ["interpolate", str(source), "--fps", "60", "-o", str(tmp_path / output)]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        assert done.stdout.splitlines()[-1] == "2 False"


@pytest.mark.parametrize("command", ["interpolate", "batch", "stats", "info", "doctor", "demo"])
def test_every_command_has_help(command: str) -> None:
    result = ugsp(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_version() -> None:
    assert __version__ in ugsp("--version").stdout


def test_scene_threshold_is_the_pipelines() -> None:
    assert options.DEFAULT_SCENE_THRESHOLD == pipeline.SCENE_THRESHOLD


def test_interpolate(fake: FakeEngine, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", Clip(sounds=[Sound(seconds=Fraction(1, 2))]))
    result = ugsp("interpolate", clip, "--fps", "60")
    assert result.exit_code == 0
    assert "Written" in result.stdout
    assert "12 source frames -> 30 output frames: 22 interpolated, 6 copied, 2 held" in result.stdout
    assert "Skipped 35.0% of the network's work" in result.stdout
    assert result.stderr == ""  # no terminal, no progress
    info = media.probe(tmp_path / "clip.60fps.mp4")
    assert info.rate == 60
    assert [stream.kind for stream in info.streams] == ["video", "audio"]


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (("--fps", "59.94"), "clip.59.94fps.mp4"),
        (("--fps", "60000/1001"), "clip.59.94fps.mp4"),
        (("--multiplier", "2"), "clip.48fps.mp4"),
        (("--slow-motion", "2"), "clip.24fps.mp4"),
    ],
)
def test_default_output_name(
    fake: FakeEngine, clip: Path, wish: tuple[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = ugsp("interpolate", clip, *wish, "--dry-run")
    assert result.exit_code == 0
    assert str(clip.with_name(name)) in result.stdout
    assert files(clip.parent) == {"clip.mp4"}


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_dry_run_looks_for_the_device_too(clip: Path, device: str) -> None:
    result = ugsp("interpolate", clip, "--fps", "60", "--dry-run", "--device", device)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_encoding_options_arrive(fake: FakeEngine, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    more = ["--codec", "ffv1", "--pix-fmt", "yuv420p", "--encoder-option", "level=3", "-o", str(output)]
    assert ugsp("interpolate", clip, "--multiplier", "2", *more).exit_code == 0
    assert media.probe(output).codec == "ffv1"


def test_statistics_to_file_and_stdout(fake: FakeEngine, clip: Path, tmp_path: Path) -> None:
    to_file, to_stdout = tmp_path / "stats.json", tmp_path / "second.mp4"
    ugsp("interpolate", clip, "--fps", "60", "--stats", to_file)
    result = ugsp("interpolate", clip, "--fps", "60", "-o", to_stdout, "--stats", "-")
    first, second = json.loads(to_file.read_text()), json.loads(result.stdout)
    assert first["frames"] == second["frames"]
    assert second["output"] == str(to_stdout)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_statistics_into_pipes_and_through_links(fake: FakeEngine, clip: Path, tmp_path: Path) -> None:
    pipe, told, link = tmp_path / "pipe", tmp_path / "told.json", tmp_path / "link.json"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert ugsp("stats", clip, "--fps", "60", "--stats", pipe).exit_code == 0
        out, _ = reader.communicate(timeout=60)
    assert pipe.is_fifo()
    link.symlink_to(told)
    assert ugsp("stats", clip, "--fps", "60", "--stats", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads(told.read_text())["frames"] == json.loads(out)["frames"]
    assert ugsp("stats", clip, "--fps", "60", "--stats", os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()
    if Path("/dev/stdout").exists():
        assert json.loads(ugsp("stats", clip, "--fps", "60", "--stats", "/dev/stdout").stdout)
    if Path("/dev/shm").is_dir():  # files there are files
        shared = Path(f"/dev/shm/ugsp-test-{os.getpid()}.json")
        for _ in range(2):
            assert ugsp("stats", clip, "--fps", "60", "--stats", shared).exit_code == 0
        assert json.loads(shared.read_text())
        shared.unlink()
    long = tmp_path / ("n" * 250 + ".json")
    assert ugsp("stats", clip, "--fps", "60", "--stats", long).exit_code == 0
    assert long.exists()


def test_stats_writes_no_video(fake: FakeEngine, clip: Path) -> None:
    result = ugsp("stats", clip, "--fps", "60", "--json")
    document = json.loads(result.stdout)
    assert document["output"] is None
    assert document["frames"]["interpolated"] == len(document["per_frame"]) == 22
    text = ugsp("stats", clip, "--fps", "60").stdout
    assert all(level in text for level in ("1/8", "1/4", "1/2"))
    assert files(clip.parent) == {"clip.mp4"}


def test_quiet_and_verbose(fake: FakeEngine, clip: Path) -> None:
    quiet = ugsp("interpolate", clip, "--fps", "60", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    verbose = ugsp("interpolate", clip, "--fps", "60", "-v", "-y")
    assert "backend blend" in verbose.stdout
    assert ugsp("interpolate", clip, "--fps", "60", "-v", "-q").exit_code == 2


def test_info(clip: Path) -> None:
    assert "h264, 96x64, yuv420p" in ugsp("info", clip).stdout
    document = json.loads(ugsp("info", clip, "--json").stdout)
    assert document["video"]["rate"] == "24/1"
    assert document["duration_seconds"] == 0.5


def test_doctor(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(ugsp("doctor", "--json").stdout)
    findings = {check["name"]: check for check in document["checks"]}
    assert "libx264" in findings["encoders"]["finding"]
    assert findings["weights"]["finding"].endswith(fake.weights_sha256)
    assert "torch" in ugsp("doctor").stdout

    def fail(options: engine_module.EngineOptions) -> None:
        raise UgspError("no weights", "Bring some.")

    monkeypatch.setattr(engine_module, "load_interpolator", fail)
    broken = ugsp("doctor")
    assert broken.exit_code == 1
    assert "Bring some." in broken.stdout


def test_demo(fake: FakeEngine, tmp_path: Path) -> None:
    for _ in range(2):  # again over its own files
        result = ugsp("demo", tmp_path / "demo")
        assert result.exit_code == 0
        assert "clip.60fps.mp4" in result.stdout
    assert files(tmp_path / "demo") == {"clip.mp4", "clip.60fps.mp4"}
    info = media.probe(tmp_path / "demo" / "clip.60fps.mp4")
    assert info.rate == 60
    assert info.duration == 2
    assert [stream.kind for stream in info.streams] == ["video", "audio"]


def test_the_demo_replaces_nobodys_file(fake: FakeEngine, clip: Path) -> None:
    before = clip.read_bytes()
    result = ugsp("demo", clip.parent)
    assert result.exit_code == 2
    assert "clip.mp4 is not of an earlier demo" in result.stderr
    assert clip.read_bytes() == before
    assert files(clip.parent) == {"clip.mp4"}


def wrong_usage(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> arguments after `interpolate`, and what the message must say."""
    clip = make_clip(tmp_path / "clip.mp4", Clip())
    make_clip(tmp_path / "there.mp4", Clip(3))
    (tmp_path / "text.mp4").write_text("These are words, not pictures. " * 20)
    # The index of an MP4 that was not written for streaming is at the end: cut off, nothing of it can be read.
    (tmp_path / "corrupt.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    fps = ["--fps", "60"]
    return {
        "missing": ([str(tmp_path / "missing.mp4"), *fps], "missing.mp4: no such file"),
        "folder": ([str(tmp_path), *fps], "is a folder"),
        "not a video": ([str(tmp_path / "text.mp4"), *fps], "text.mp4"),
        "corrupt": ([str(tmp_path / "corrupt.mp4"), *fps], "corrupt.mp4"),
        "encoder": ([str(clip), *fps, "--codec", "nonsense"], "there is no encoder 'nonsense'"),
        "exists": ([str(clip), *fps, "-o", str(tmp_path / "there.mp4")], "exists already"),
        "input is output": ([str(clip), *fps, "-o", str(clip), "-y"], "is the input"),
        "no folder": ([str(clip), *fps, "-o", str(tmp_path / "no" / "out.mp4")], "does not exist"),
        "bad rate": ([str(clip), "--fps", "fast"], "'fast' is not a frame rate"),
        "rate of 0": ([str(clip), "--fps", "0"], "must be above 0"),
        "no rate": ([str(clip)], "give one of --fps, --multiplier, --slow-motion"),
        "two rates": ([str(clip), *fps, "--multiplier", "2"], "give one of"),
        "stats folder": ([str(clip), *fps, "--stats", str(tmp_path / "no" / "stats.json")], "folder does not exist"),
        "stats is input": ([str(clip), *fps, "--stats", str(clip)], "is a file of this run's own"),
        "stats is the input's other name": (
            [str(clip), *fps, "--stats", str(tmp_path / ".." / tmp_path.name / "clip.mp4")],
            "is a file of this run's own",
        ),
        "no container": ([str(clip), *fps, "-o", str(tmp_path / "out.txt")], "is not a video format"),
        "codec and container": (
            [str(clip), *fps, "-o", str(tmp_path / "out.webm"), "--codec", "libx264"],
            "a .webm file cannot hold",
        ),
        "encoder option": ([str(clip), *fps, "--encoder-option", "tune"], "NAME=VALUE"),
    }


CASES = ["missing", "folder", "not a video", "corrupt", "encoder", "exists", "input is output", "no folder", "bad rate"]
CASES += ["rate of 0", "no rate", "two rates", "stats folder", "stats is input", "encoder option"]
CASES += ["stats is the input's other name", "no container", "codec and container"]


@pytest.mark.parametrize("case", CASES)
def test_wrong_usage_is_2_and_leaves_no_trace(no_network: None, tmp_path: Path, case: str) -> None:
    cases = wrong_usage(tmp_path)
    assert set(cases) == set(CASES)
    arguments, message = cases[case]
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    result = ugsp("interpolate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    if not result.stderr.startswith("Usage:"):  # ours: what failed, what to try
        assert len(result.stderr.strip().splitlines()) <= 2
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_unwritable_folder_is_2(no_network: None, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # root may write everywhere: pretend to be somebody else
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode, **more: Path(path) != locked and access(path, mode, **more)
        )
    result = ugsp("interpolate", clip, "--fps", "60", "-o", locked / "out.mp4")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert ugsp("batch", tmp_path, locked / "out", "--fps", "60").exit_code == 2
    assert files(locked) == set()


def test_existing_output_is_replaced_only_with_y(fake: FakeEngine, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"older")
    assert ugsp("interpolate", clip, "--fps", "60", "-o", output).exit_code == 2
    assert output.read_bytes() == b"older"
    assert ugsp("interpolate", clip, "--fps", "60", "-o", output, "-y").exit_code == 0
    assert media.probe(output).rate == 60


def test_a_bug_is_one_line_unless_debugging(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: engine_module.EngineOptions) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine_module, "load_interpolator", fail)
    result = ugsp("interpolate", clip, "--fps", "60")
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError: a bug" in result.stderr
    assert "UGSP_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("UGSP_DEBUG", "1")
    assert "Traceback" in ugsp("interpolate", clip, "--fps", "60").stderr
    assert "Traceback" in ugsp("info", clip.with_name("missing.mp4")).stderr


def test_a_full_disk_is_1(fake: FakeEngine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ugsp_cli.atomic.AtomicFile.write", fail)
    result = ugsp("interpolate", clip, "--fps", "60")
    assert result.exit_code == 1
    assert "o space left" in result.stderr
    assert files(clip.parent) == {"clip.mp4"}


def wait_for_work(folder: Path, running: subprocess.Popen[str]) -> None:
    """Until the output's temporary file is there."""
    deadline = time.monotonic() + 60
    while not any(name.startswith(".out") for name in files(folder)):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_signals_leave_the_older_output(clip: Path, tmp_path: Path, number: str) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"older")
    running = process("interpolate", clip, "--fps", "60", "-y", "-o", output, module="tests.fakes", seconds=0.5)
    wait_for_work(tmp_path, running)
    running.send_signal(getattr(signal, number))
    out, err = running.communicate(timeout=30)
    assert output.read_bytes() == b"older"
    assert out == ""
    if number == "SIGKILL":
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 130
        assert files(tmp_path) == {"clip.mp4", "out.mp4"}
        assert err.count("\n") == 1
        assert "interrupted" in err


@pytest.mark.skipif(os.name != "posix", reason="closes streams by a POSIX shell")
def test_it_speaks_to_whatever_listens(clip: Path) -> None:
    """Nothing at all, or what knows no more than ASCII."""
    named = clip.rename(clip.with_name("\u00fcn\u00ef.mp4"))
    command = f"{sys.executable} -m ugsp_cli info {named}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "models")]),
        "PYTHONIOENCODING": "ascii",
    }
    for end in ("", " >&-", " >&- 2>&-"):
        done = subprocess.run(command + end, shell=True, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert end or "\\xfcn\\xef.mp4" in done.stdout


def test_the_module_runs_as_a_process(clip: Path, tmp_path: Path) -> None:
    running = process("interpolate", clip, "--fps", "60", "-o", tmp_path / "out.mkv", module="tests.fakes")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (
        0,
        "Note: matroska stores times in whole milliseconds; .mp4 and .mov store them exactly\n",
    )
    assert "Written" in out
    running = process("info", tmp_path / "missing.mp4")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (2, "")
    assert err.startswith("Error:")
