"""``sepnet train``, ``val`` and ``predict``: one short run, and all that is done with it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from cli_runner import error_of, invoke, start
from data_files import write_mnist
from sepnet.cli._output import Output
from sepnet.cli._progress import training_reporter
from sepnet.cli.train import _next, _weakest
from sepnet.engine import Interrupted

SHORT = ("--iterations", 20, "--batch-size", 32, "--device", "cpu", "--model-kwargs", "units=[8,16]", "--no-amp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("cli") / "digits"
    return folder, invoke("train", "digits", *SHORT, "--output", folder)


@pytest.fixture
def run(trained: tuple[Path, Any]) -> Path:
    return trained[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "config.yaml").read_text()))


# --- train --------------------------------------------------------------------------------------------------------------


def test_train_says_what_it_does_and_what_came_out(trained: tuple[Path, Any]) -> None:
    folder, result = trained
    before, after = result.stdout.split("\n\n", 1)
    for part in (
        "digits (scikit-learn): 10 classes",
        "multiscale_concat",
        "20 iterations of 32 images",
        "cpu, fp32",
        "on this machine",
        str(folder),
    ):
        assert part in before
    for part in ("validation", "test", "weakest", "model.safetensors", f"sepnet val {folder}", f"sepnet predict {folder}"):
        assert part in after
    assert "iteration" in result.stderr  # the rows of the evaluations
    assert "val %" in result.stderr


def test_only_given_flags_change_the_recipe(run: Path) -> None:
    config = config_of(run)
    assert (config["iterations"], config["batch_size"], config["amp"]) == (20, 32, "off")
    assert config["model_options"] == {"units": [8, 16]}
    assert (config["recipe"], config["keep"], config["sched"]) == ("auto", "best", "triangular")


def test_flags_go_before_the_file_and_the_file_before_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("lr: 0.01\nmomentum: 0.5\n")
    invoke("train", "digits", *SHORT, "--config", "my.yaml", "--lr", 0.02, "--hflip", "off", "--output", "run")
    config = config_of(tmp_path / "run")
    assert (config["lr"], config["momentum"]) == (0.02, 0.5)


def test_train_json_is_all_of_stdout(tmp_path: Path) -> None:
    result = invoke("train", "digits", *SHORT, "--seed", 3, "--json")
    found = json.loads(result.stdout)
    assert found["folder"] == "runs/digits"
    assert set(found["files"]) >= {"config.yaml", "metrics.csv", "model.safetensors", "run.json"}
    assert 0 <= found["result"]["test"]["accuracy"] <= 100
    assert found["config"]["seed"] == 3
    assert "digits (scikit-learn)" in result.stderr


def test_train_does_not_write_over_a_run(run: Path) -> None:
    assert "already holds a run" in error_of("train", "digits", *SHORT, "--output", run)


def test_resume_continues_a_run_killed_before_its_record(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    result = invoke("train", "--resume", "copy", "--json")
    assert json.loads(result.stdout)["iterations"] == 20
    assert "(resumed)" in result.stderr


def test_resume_with_other_data_is_refused(run: Path, tmp_path: Path) -> None:
    for i in range(40):
        path = tmp_path / "images" / ("even" if i % 2 == 0 else "odd") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 20 + i).save(path)
    before = (run / "last.pt").read_bytes()
    result = invoke("train", tmp_path / "images", "--size", 8, "--resume", run, exit_code=2)
    assert "data set" in result.stderr.splitlines()[-1]
    assert (run / "last.pt").read_bytes() == before


def test_ctrl_c_tells_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_config: object, _data: object, folder: Path, **_: object) -> None:
        folder.mkdir(parents=True)
        (folder / "last.pt").touch()
        raise Interrupted(1234, folder / "last.pt")

    monkeypatch.setattr("sepnet.api.run_training", stop)
    result = invoke("train", "digits", *SHORT, "--output", "part", exit_code=130)
    assert result.stderr.splitlines()[-1] == "interrupted at iteration 1,234, saved; continue with: sepnet train --resume part"


def test_a_run_finds_its_data_set_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "elsewhere")
    run, words = tmp_path / "run", ("--iterations", 2, "--batch-size", 8)
    invoke("train", "mnist", "--data-dir", "elsewhere", *words, "--output", run)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert "20 images" in invoke("val", run).stdout
    for name in ("run.json", "model.safetensors", "config.json"):
        (run / name).unlink()
    assert "20 test images" in invoke("train", "--resume", run).stdout  # where a SIGKILL might have left it
    assert str(tmp_path) not in (run / "config.json").read_text()
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert "elsewhere" in error_of("val", run)
    assert "20 images" in invoke("val", run, "--data-dir", tmp_path / "moved").stdout


def test_a_run_finds_its_folder_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shade in (("dark", 20), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (shade + i, shade, shade)).save(tmp_path / "images" / name / f"{i}.png")
    run = tmp_path / "run"
    invoke("train", "images", "--size", 8, "--iterations", 2, "--batch-size", 4, "--output", run)
    (tmp_path / "other" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert "accuracy" in invoke("val", run).stdout  # and not of the empty folder of that name here
    (run / "run.json").unlink()
    assert "test images" in invoke("train", "--resume", run).stdout
    assert "accuracy" in invoke("val", run).stdout
    (run / "data.json").write_text("{")
    assert error_of("val", run)


def test_ctrl_c_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sepnet.api.run_training", stop)
    result = invoke("train", "digits", *SHORT, "--output", "part", exit_code=130)
    assert result.stderr.splitlines()[-1] == "interrupted before anything was saved"


@pytest.mark.parametrize(
    ("splits", "command"), [(("val", "test"), ["sepnet val r"]), (("val",), ["sepnet val r --split val"]), ((), [])]
)
def test_the_next_command_scores_a_split_that_is_there(splits: tuple[str, ...], command: list[str]) -> None:
    run = SimpleNamespace(folder=Path("r"), record=SimpleNamespace(result=dict.fromkeys(splits)))
    assert _next(run).splitlines() == [*command, "sepnet predict r IMAGE..."]  # type: ignore[arg-type]


def test_classes_without_a_miss_are_not_weak() -> None:
    assert _weakest([{"class": "a", "recall": 100.0}, {"class": "b", "recall": None}]) == ""
    assert _weakest([{"class": "a", "recall": 100.0}, {"class": "b", "recall": 50.0}]).startswith("recall of b: 50.0 %")


def test_train_help_names_the_settings_without_a_flag() -> None:
    text = " ".join(invoke("train", "--help").stdout.replace("│", " ").split())
    for part in ("adamw or muon", "muon_lr", "muon_weight_decay", "checkpoint_seconds", "keep", "Example: sepnet train"):
        assert part in text


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    length = ("--iterations", "1000000", "--eval-every", "20")
    process = start("train", "digits", *length, "--model-kwargs", "units=[8,16]", "--output", "long")
    deadline = time.monotonic() + 60
    while not (tmp_path / "long" / "metrics.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.decode().splitlines()[-1].endswith("saved; continue with: sepnet train --resume long")
    assert b"Traceback" not in err


def test_only_the_first_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    Output().facts([("data", "digits")])
    Output().json({"a": 1})
    reporter = training_reporter("val")
    reporter.evaluated({"iteration": 1, "epoch": 1, "train_loss": 1, "train_accuracy": 1, "seconds": 1})
    reporter.end()
    assert capsys.readouterr() == ("", "")


# --- val ----------------------------------------------------------------------------------------------------------------


def test_val_repeats_the_test_score_of_the_run(run: Path) -> None:
    found = json.loads(invoke("val", run, "--json", "--device", "cpu").stdout)
    record = json.loads((run / "run.json").read_text())
    assert found["accuracy"] == pytest.approx(record["result"]["test"]["accuracy"])
    assert found["images"] == record["result"]["test"]["images"]


def test_val_for_a_person(run: Path) -> None:
    text = invoke("val", run, "--split", "val", "--tta").stdout
    for part in ("val split", "among the first five", "with TTA", "precision", "F1"):
        assert part in text


def test_val_of_what_cannot_be_scored(run: Path) -> None:
    assert "choose train, val or test" in error_of("val", run, "--split", "tset")
    assert "nowhere is not the folder of a finished run" in error_of("val", "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_release_cut_in_half(name: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "cut")
    path = tmp_path / "cut" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"cut/{name}" in error_of("val", "cut")
    assert f"cut/{name}" in error_of("predict", "cut", ".")


# --- predict ------------------------------------------------------------------------------------------------------------

AWKWARD = b"line\nbreak \xff.png"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.png", "b,c.png"):
        Image.effect_noise((8, 8), 60).save(folder / name)
    shutil.copy(os.fsencode(folder / "a.png"), os.fsencode(folder) + b"/" + AWKWARD)
    return folder


def test_predict_prints_a_line_a_file(run: Path, images: Path) -> None:
    lines = invoke("predict", run, images, "--top", 2).stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{images}/a.png: ")
    assert lines[0].count("%") == 2
    assert "line\\nbreak \\udcff.png" in lines[2]


def test_a_file_that_is_no_image_does_not_stop_the_others(run: Path, images: Path) -> None:
    (images / "text.png").write_text("no image")
    result = invoke("predict", run, images, exit_code=2)
    assert len(result.stdout.splitlines()) == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "text.png" in line


def test_predict_json(run: Path, images: Path) -> None:
    (images / "text.png").write_text("no image")
    found = json.loads(invoke("predict", run, images, "--json", exit_code=2).stdout)
    assert [Path(entry["path"]).name for entry in found["errors"]] == ["text.png"]
    paths = [os.fsencode(entry["path"]) for entry in found["predictions"]]
    assert os.fsencode(images) + b"/" + AWKWARD in paths
    for entry in found["predictions"]:
        assert len(entry["top"]) == 5
        assert 0 < sum(each["probability"] for each in entry["top"]) <= 1.0001


def test_predict_csv(run: Path, images: Path) -> None:
    result = invoke("predict", run, str(images / "*.png"), "--csv", "--top", 2)
    rows = list(csv.reader(io.StringIO(result.stdout_bytes.decode("utf-8", "surrogateescape"), newline="")))
    assert rows[0] == ["path", "class1", "prob1", "class2", "prob2"]
    assert {os.fsencode(Path(row[0]).name) for row in rows[1:]} == {b"a.png", b"b,c.png", AWKWARD}
    assert all(float(row[2]) >= float(row[4]) for row in rows[1:])


def test_predict_of_what_is_not_there(run: Path, tmp_path: Path) -> None:
    assert "none.png does not exist" in error_of("predict", run, "none.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "there.png")
    result = invoke("predict", run, "none.png", "there.png", "--json", exit_code=2)
    found = json.loads(result.stdout)
    assert [entry["path"] for entry in found["predictions"]] == ["there.png"]
    assert "none.png does not exist" in result.stderr
    assert "batch" not in error_of("predict", run, "there.png", "--top", 0)
    assert "choose one" in error_of("predict", run, "none.png", "--csv", "--json")
    assert "--top" in error_of("predict", run, ".", "--top", 0)
    assert "finished run" in error_of("predict", "nowhere", ".")


def test_what_is_no_file_is_not_read(run: Path, images: Path) -> None:
    """A pipe that nobody writes to would be waited for until the end of time."""
    os.mkfifo(images / "pipe.png")
    result = invoke("predict", run, images / "pipe.png", images / "a.png", exit_code=2)
    assert "pipe.png is no file" in result.stderr
    assert "a.png: " in result.stdout
    assert len(invoke("predict", run, images).stdout.splitlines()) == 3, "in a folder it is passed over"


# --- resuming what was never saved, and outputs out of reach --------------------------------------------------------------


def test_a_run_that_was_never_saved_begins_anew_with_what_is_asked_for_now(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    text = invoke("train", "--resume", folder, "--iterations", 5).stdout
    assert "from the beginning: nothing had been saved yet" in text
    assert config_of(folder)["iterations"] == json.loads((folder / "run.json").read_text())["iterations"] == 5


def test_a_finished_run_is_not_resumed_and_no_plan_is_shown(run: Path) -> None:
    assert "start a run with another --output" in error_of("train", "--resume", run, "--iterations", 30)


def test_another_size_is_called_another_size(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(run, folder)
    (folder / "run.json").unlink()
    result = invoke("train", "--resume", folder, "--size", 12, exit_code=2)
    assert "was trained with size 8, this run has size 12" in result.stderr


@pytest.mark.parametrize(
    "command", [("train", "digits"), ("compare", "squeezenet", "--data", "digits")], ids=lambda words: words[0]
)
def test_an_output_out_of_reach_is_found_before_anything_is_read(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = error_of(*command, "--output", tmp_path / "file" / "run")
    assert message.endswith("file is a file; choose another --output")
