"""The statistics: sums, means, and exactly the JSON that scripts rely on."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from tests.fakes import ACTIVE, DENSE_MACS, LEVEL_DENSE_MACS, STRIDES
from ugsp_cli.engine import Made
from ugsp_cli.stats import JobStats, ModelIdentity, StageSeconds, StatsRecorder, write_json
from ugsp_cli.tables import sparkline
from ugsp_cli.timeline import Slot


def made(active: tuple[float, ...] = ACTIVE, performed: int = 600_000) -> Made:
    level_performed = tuple(round(share * macs) for share, macs in zip(active, LEVEL_DENSE_MACS, strict=True))
    return Made((), active, DENSE_MACS, performed, LEVEL_DENSE_MACS, level_performed)


def slot(index: int) -> Slot:
    return Slot(index, Fraction(index, 60), index // 2, Fraction(1, 2), "interpolated")


def result_of(recorder: StatsRecorder) -> JobStats:
    return recorder.result(
        input="in.mp4",
        output="out.mp4",
        model=ModelIdentity("ugsp", "ab" * 32, 123),
        device="cpu",
        precision="bf16",
        backend="tiles",
        seconds=StageSeconds(4.0, 1.0, 2.0, 3.0),
        notes=["a note"],
    )


def filled() -> JobStats:
    recorder = StatsRecorder(STRIDES)
    for number in range(3):
        recorder.add_source(cut=number == 1, duplicate=number == 2)
    for number, active in ((1, (1.0, 1.0, 1.0)), (3, (0.5, 0.0, 0.0))):
        recorder.add_output("copied")
        recorder.add_output("interpolated")
        recorder.add_made(slot(number), made(active, 900_000 if number == 1 else 300_000))
    recorder.add_output("held")
    return result_of(recorder)


def test_counts_and_sums() -> None:
    stats = filled()
    assert (stats.frames.source, stats.frames.scene_cuts, stats.frames.duplicates) == (3, 1, 1)
    assert (stats.frames.interpolated, stats.frames.copied, stats.frames.held, stats.frames.output) == (2, 2, 1, 5)
    assert (stats.dense_macs, stats.performed_macs) == (2_000_000, 1_200_000)
    assert stats.skipped_fraction == pytest.approx(0.4)
    assert [level.active_fraction for level in stats.levels] == [0.75, 0.5, 0.5]
    assert [level.performed_macs for level in stats.levels] == [150_000, 200_000, 300_000]
    # The mask of a frame as a whole weighs each level with its dense work.
    assert stats.per_frame[1].active_fraction == pytest.approx(0.5 * 100 / 600)


def test_the_json_is_the_contract() -> None:
    document = json.loads(json.dumps(filled().to_json()))
    assert document == {
        "schema": 1,
        "input": "in.mp4",
        "output": "out.mp4",
        "model": {"name": "ugsp", "weights_sha256": "ab" * 32, "parameters": 123},
        "device": "cpu",
        "precision": "bf16",
        "backend": "tiles",
        "frames": {
            "source": 3,
            "output": 5,
            "interpolated": 2,
            "copied": 2,
            "held": 1,
            "scene_cuts": 1,
            "duplicates": 1,
        },
        "compute": {
            "dense_gmacs": pytest.approx(0.002),
            "performed_gmacs": pytest.approx(0.0012),
            "skipped_fraction": pytest.approx(0.4),
            "levels": [
                {
                    "stride": stride,
                    "active_fraction": active,
                    "dense_gmacs": pytest.approx(dense),
                    "performed_gmacs": pytest.approx(performed),
                }
                for stride, active, dense, performed in [
                    (8, 0.75, 0.0002, 0.00015),
                    (4, 0.5, 0.0004, 0.0002),
                    (2, 0.5, 0.0006, 0.0003),
                ]
            ],
        },
        "seconds": {"total": 4.0, "decode": 1.0, "network": 2.0, "encode": 3.0},
        "per_frame": [
            {"pts_seconds": pytest.approx(1 / 60), "source": 0, "t": 0.5, "active_fraction": pytest.approx(1.0)},
            {"pts_seconds": pytest.approx(3 / 60), "source": 1, "t": 0.5, "active_fraction": pytest.approx(1 / 12)},
        ],
    }


def test_nothing_done_is_no_division_by_zero() -> None:
    stats = result_of(StatsRecorder(STRIDES))
    assert stats.skipped_fraction == 0.0
    assert stats.to_json()["compute"]["levels"][2]["active_fraction"] == 0.0


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "stats.json"
    write_json({"a": 1}, target)
    with pytest.raises(TypeError):
        write_json({"a": object()}, target)
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_sparkline_spans_all_heights() -> None:
    assert sparkline([0.0, 0.5, None, 1.0]) in ("▁▅ █", "_:#")
