"""``sepnet reproduce``, on a paper with one small table."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from cli_runner import error_of, invoke
from sepnet.data import TrainLoader
from sepnet.engine import Interrupted
from sepnet.recipes import papers
from small_paper import small_paper


@pytest.fixture(autouse=True)
def _small_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = small_paper()
    monkeypatch.setattr(papers, "get", lambda _: paper)
    monkeypatch.chdir(tmp_path)


def test_dry_run_says_what_and_how_long() -> None:
    text = invoke("reproduce", "small", "--dry-run", "--seeds", 2).stdout
    for part in (
        "A small paper",
        "8 runs, 0 done already, 8 to go",
        "on this machine",
        "left out",
        "there is no reader yet",
        "runs/small",
    ):
        assert part in text


def test_report_only_draws_what_is_recorded_and_runs_nothing(tmp_path: Path) -> None:
    invoke("reproduce", "small", "--seeds", 1, "--recipes", "plain", "--models", "mobilenet_units")
    before = sorted((tmp_path / "runs/small/records").iterdir())
    (tmp_path / "runs/small/table-1.md").unlink()
    invoke("reproduce", "small", "--seeds", 2, "--report-only")
    assert sorted((tmp_path / "runs/small/records").iterdir()) == before
    table = (tmp_path / "runs/small/table-1.md").read_text()
    assert "1 of 4, 2 wanted" in table
    assert "(1 of 2)" in table


def test_a_report_of_some_runs_keeps_the_others(tmp_path: Path) -> None:
    invoke("reproduce", "small", "--seeds", 2, "--models", "mobilenet_units")
    table = tmp_path / "runs/small/table-1.md"
    before = table.read_text()
    invoke("reproduce", "small", "--seeds", 1, "--models", "mobilenet_units", "--recipes", "plain", "--report-only")
    assert table.read_text() == before


def test_a_run_killed_before_its_record_is_not_run_again(tmp_path: Path) -> None:
    words = ("reproduce", "small", "--seeds", 1, "--recipes", "plain", "--models", "mobilenet_units")
    folder, kept = tmp_path / "runs/small/digits-mobilenet_units-plain-seed0", tmp_path / "last.pt"
    unlink = Path.unlink

    def keep(path: Path, missing_ok: bool = False) -> None:
        if path.name == "last.pt" and path.exists():
            shutil.copy(path, kept)
        unlink(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", keep)
        invoke(*words)
    shutil.copy(kept, folder / "last.pt")
    record = tmp_path / "runs/small/records" / f"{folder.name}.json"
    before = json.loads(record.read_text())
    record.unlink()
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sepnet.api._plan.seconds_per_run", lambda *_: 1.0)  # times a few steps of its own
        batch = TrainLoader.batch
        patch.setattr(TrainLoader, "batch", lambda loader, i: trained.append(i) or batch(loader, i))
        invoke(*words)
    assert trained == []
    after = json.loads(record.read_text())
    assert (after["history"], after["result"]) == (before["history"], before["result"])


def test_a_changed_recipe_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    words = ("reproduce", "small", "--seeds", 1, "--recipes", "plain", "--models", "mobilenet_units")
    invoke(*words)
    folder = tmp_path / "runs/small/digits-mobilenet_units-plain-seed0"
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("lr: 0.05", "lr: 0.06"))
    (tmp_path / "runs/small/records" / f"{folder.name}.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sepnet.api._run.fit", lambda *_, **__: (_ for _ in ()).throw(Interrupted(7, None)))
        invoke(*words, exit_code=130)
    assert not (folder / "run.json").exists()


def test_dry_run_json() -> None:
    found = json.loads(
        invoke("reproduce", "small", "--dry-run", "--recipes", "plain", "--models", "mobilenet_units", "--json").stdout
    )
    assert [run["key"] for run in found["runs"]] == [f"digits-mobilenet_units-plain-seed{seed}" for seed in range(3)]
    assert found["expected_seconds"] > 0
    assert found["files"] == []


def test_a_table_is_made_and_not_made_again(tmp_path: Path) -> None:
    words = (
        "reproduce",
        "small",
        "--table",
        1,
        "--seeds",
        1,
        "--models",
        "multiscale_concat",
        "--recipes",
        "plain",
        "--output",
        "out",
    )
    result = invoke(*words)
    assert "[1/1] digits, multiscale_concat, plain, seed 0" in result.stderr
    assert "test accuracy" in result.stderr
    assert "written" in result.stdout
    again = invoke(*words, "--json")
    found = json.loads(again.stdout)
    assert all(run["done"] for run in found["runs"])
    assert all(Path(name).is_file() for name in found["files"])
    assert "[1/1]" not in again.stderr


def test_ctrl_c_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted(5, None)

    monkeypatch.setattr("sepnet.api._reproduce.run_training", stop)
    result = invoke("reproduce", "small", "--table", 1, "--seeds", 1, exit_code=130)
    assert result.stderr.splitlines()[-1].endswith("the same command goes on from here")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--table", 9], "no table 9"),
        (["--table", "four"], "--table four"),
        (["--recipes", "fancy"], "plain, modern"),
        (["--models", "resnet"], "resnet"),
        (["--seeds", 0], "--seeds"),
        (["--table", 3], "there is no reader yet"),
    ],
)
def test_what_the_paper_does_not_have(words: list[object], hint: str) -> None:
    assert hint in error_of("reproduce", "small", *words)


@pytest.mark.parametrize("flag", ["--models", "--recipes", "--table"])
def test_a_list_of_nothing_is_not_everything(flag: str) -> None:
    assert f"{flag} ,: it names nothing" in error_of("reproduce", "small", flag, ",")


def test_a_report_of_nothing_is_refused() -> None:
    assert "no run is recorded in runs/small" in error_of("reproduce", "small", "--report-only")
    assert "no run of --budget 0.5 is recorded" in error_of("reproduce", "small", "--report-only", "--budget", 0.5)


def test_an_output_that_cannot_be_written_is_found_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepnet.api.timed", lambda *_: pytest.fail("timed before it was found"))
    (tmp_path / "file").touch()
    assert "cannot write into file/deeper: Not a directory" in error_of("reproduce", "small", "--output", "file/deeper")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs").touch()
    assert "cannot write into out/runs: File exists" in error_of("reproduce", "small", "--output", "out")


def test_an_interrupted_run_goes_on_from_beside_the_output_whatever_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("reproduce", "small", "--seeds", 1, "--recipes", "plain", "--models", "mobilenet_units", "--output", tmp_path / "out")
    batch, seen = TrainLoader.batch, []

    def stop(loader: TrainLoader, iteration: int) -> object:
        seen.append(iteration)
        if iteration == 3 and seen.count(3) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(loader, iteration)

    monkeypatch.setattr("sepnet.api._plan.seconds_per_run", lambda *_: 1.0)
    monkeypatch.setattr(TrainLoader, "batch", stop)
    invoke(*words, exit_code=130)
    assert (tmp_path / "out/runs/digits-mobilenet_units-plain-seed0/last.pt").exists()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    seen.clear()
    found = json.loads(invoke(*words, "--dry-run", "--json").stdout)
    assert 0 < found["expected_seconds"] < 1, "what is done already takes no time"
    assert "1 to go, 1 of them from a checkpoint in" in invoke(*words).stdout
    assert min(seen) == 4
