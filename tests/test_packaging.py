"""What is installed: every package that is on disk, and a wheel that runs anywhere."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


def folders(setup: configparser.ConfigParser) -> dict[str, Path]:
    """The folder of each top-level package."""
    pairs = (line.split("=") for line in setup["options"]["package_dir"].split("\n") if line.strip())
    return {name.strip(): REPOSITORY / folder.strip() for name, folder in pairs}


def test_every_package_on_disk_is_listed(setup: configparser.ConfigParser) -> None:
    listed = setup["options"]["packages"].split()
    found = [
        ".".join([name, *path.parent.relative_to(folder).parts])
        for name, folder in folders(setup).items()
        for path in folder.rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_constraints_pin_every_requirement(setup: configparser.ConfigParser) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonicalize_name(name)] = version
    extras = setup["options.extras_require"].values()
    for text in [*setup["options"]["install_requires"].split("\n"), *"\n".join(extras).split("\n")]:
        if text.strip():
            requirement = Requirement(text)
            if requirement.name == "triton":  # each torch for CUDA needs one version of it
                continue
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, setup: configparser.ConfigParser) -> Path:
    """A folder into which the package was installed from a copy of the sources, so that the checkout stays clean."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.fail("setuptools is missing: install the dev extra")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for folder in folders(setup).values():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, source / folder.relative_to(REPOSITORY), ignore=ignore)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True)
    return site


def test_the_wheel_runs_beside_folders_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    for name in ("models", "weights", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the decoy was imported')\n")
    code = (
        "from importlib import resources; import ugsp_cli.pipeline, ugsp_net, ugsp_weights\n"
        "for package in (ugsp_cli, ugsp_net, ugsp_weights): print(package.__file__)\n"
        "print(*sorted(entry.name for entry in resources.files('ugsp_weights').iterdir()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    *packages, weights = done.stdout.splitlines()
    assert all(Path(package).is_relative_to(installed) for package in packages)
    expected = {path.name for path in (REPOSITORY / "weights").glob("*.safetensors")}
    assert expected <= set(weights.split())
    version = subprocess.run(
        [sys.executable, "-m", "ugsp_cli", "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.startswith("ugsp, version")


def test_the_wheel_has_the_command(installed: Path) -> None:
    (entry_points,) = installed.glob("ugsp-*.dist-info/entry_points.txt")
    assert "ugsp = ugsp_cli.__main__:main" in entry_points.read_text(encoding="utf-8")
