"""``sepnet compare``, on networks of a few thousand parameters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_runner import error_of, invoke
from sepnet.api import _compare
from sepnet.cli.compare import _entrant
from sepnet.engine import Interrupted

SHORT = ("--data", "digits", "--iterations", 4, "--batch-size", 32, "--device", "cpu", "--no-amp")
CONCAT, MOBILE = "multiscale_concat:units=[8,16]", "mobilenet_units:units=[8,16]"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("compare") / "out"
    return folder, invoke("compare", CONCAT, MOBILE, *SHORT, "--seeds", 2, "--output", folder)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # drawing takes longer than the training; ``compared`` has the real figure, and test_comparison.py looks at it
    monkeypatch.setattr(_compare, "tradeoff_figure", lambda *_: b"")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs that are trained in a test."""
    folders: list[str] = []
    train = _compare.run_training

    def note(config: Any, dataset: Any, folder: Path, **options: Any) -> Any:
        folders.append(folder.name)
        return train(config, dataset, folder, **options)

    monkeypatch.setattr(_compare, "run_training", note)
    return folders


def runs_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_says_what_it_will_do_and_shows_what_came_out(compared: tuple[Path, Any]) -> None:
    folder, result = compared
    before, after = result.stdout.split("validation %")
    for part in ("digits (scikit-learn): 10 classes", "143 validation", "4 iterations of 32 images", "seeds 0 to 1", "4 to go"):
        assert part in before
    assert "about" in before
    for part in (CONCAT, MOBILE, "± ", "(2)", "latency", "on the front of", str(folder / "compare.png")):
        assert part in after or part in result.stdout
    assert "[4/4]" in result.stderr
    assert "measuring the speed" in result.stderr
    assert runs_of(folder) == [f"{name}-units=-8,16--{digest}-seed{seed}" for name, digest, seed in _folders(folder)]


def _folders(folder: Path) -> list[tuple[str, str, int]]:
    """Network, digest and seed of each run's folder: two networks with two seeds."""
    parts = [name.rsplit("-", 2) for name in runs_of(folder)]
    found = [(head.partition("-")[0], digest, int(seed.removeprefix("seed"))) for head, digest, seed in parts]
    assert [(name, seed) for name, _, seed in found] == [(n, s) for n in ("mobilenet_units", "multiscale_concat") for s in (0, 1)]
    return found


def test_json_has_everything(compared: tuple[Path, Any]) -> None:
    folder, _ = compared
    found = json.loads((folder / "compare.json").read_text())
    assert found["measured_on"]["precision"] == "fp32"
    assert found["settings"]["iterations"] == 4
    assert [network["label"] for network in found["networks"]] == [CONCAT, MOBILE]
    for network in found["networks"]:
        assert network["validation"]["n"] == network["test"]["n"] == 2
        assert network["seeds"] == [0, 1]
        assert network["latency"]["median_ms"] <= network["latency"]["p90_ms"]
        assert network["throughput"]["batch_size"] == 128
        for split, run in (("validation", "val"), ("test", "test")):
            records = [json.loads((Path(f) / "run.json").read_text()) for f in network["runs"]]
            assert network[split]["accuracies"] == [record["result"][run]["accuracy"] for record in records]
    assert any(network["front"]["macs"] for network in found["networks"])
    text = (folder / "compare.md").read_text()
    assert "compare.png" in text
    assert "The test split was used once" in text
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_trained_again(compared: tuple[Path, Any], tmp_path: Path, trained: list[str]) -> None:
    folder = shutil.copytree(compared[0], tmp_path / "out")
    result = invoke("compare", CONCAT, MOBILE, "multiscale_add:units=[8]", *SHORT, "--output", folder, "--json")
    found = json.loads(result.stdout)
    assert len(trained) == 1
    assert trained[0].startswith("multiscale_add")
    assert [network["validation"]["n"] for network in found["networks"]] == [1, 1, 1]
    assert all(Path(name).is_file() for name in found["files"])


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    words = ("compare", CONCAT, MOBILE, *SHORT, "--output", tmp_path / "out")
    counting = _compare.run_training

    def stop_at_second(*given: Any, **options: Any) -> Any:
        if trained:
            raise Interrupted(2, None)
        return counting(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_compare, "run_training", stop_at_second)
        result = invoke(*words, exit_code=130)
    assert result.stderr.splitlines()[-1].endswith("the same command goes on from here")
    assert not (tmp_path / "out" / "compare.json").exists()
    trained.clear()
    invoke(*words)
    assert len(trained) == 1
    assert trained[0].startswith("mobilenet_units")
    assert (tmp_path / "out" / "compare.json").exists()


def test_a_run_that_was_begun_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed: list[bool] = []
    train = _compare.run_training

    def note(*given: Any, resume: bool, **options: Any) -> Any:
        resumed.append(resume)
        return train(*given, resume=resume, **options)

    words = ("compare", MOBILE, *SHORT, "--output", tmp_path / "out")
    invoke(*words)
    run = tmp_path / "out" / runs_of(tmp_path / "out")[0]
    (run / "run.json").unlink()
    monkeypatch.setattr(_compare, "run_training", note)
    invoke(*words)
    assert resumed == [True]


def test_run_folders_are_taken_as_they_are(compared: tuple[Path, Any], tmp_path: Path, trained: list[str]) -> None:
    folder, _ = compared
    concat = [folder / name for name in runs_of(folder) if "concat" in name]
    found = json.loads(invoke("compare", *concat, "--device", "cpu", "--no-amp", "--json", "--output", tmp_path / "out").stdout)
    assert trained == []
    (network,) = found["networks"]
    assert (network["label"], network["validation"]["n"]) == (CONCAT, 2)
    assert found["plan"] == "4 iterations of 32 images, recipe auto"
    assert not any("instead of" in note for note in found["notes"])


def test_a_run_of_another_length_is_marked(compared: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = compared
    concat = next(folder / name for name in runs_of(folder) if "concat" in name)
    words = ("compare", MOBILE, concat, *SHORT, "--iterations", 6, "--json", "--output", tmp_path / "out")
    found = json.loads(invoke(*words).stdout)
    assert {network["label"] for network in found["networks"]} == {MOBILE, f"{CONCAT} (other settings)"}
    (note,) = [note for note in found["notes"] if "instead of" in note]
    assert note.startswith(f"{CONCAT} (other settings): iterations 4 instead of 6")


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    found = json.loads(invoke("compare", CONCAT, MOBILE, *SHORT, "--dry-run", "--json").stdout)
    assert [run["done"] for run in found["runs"]] == [False, False]
    assert found["expected_seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_network_on_the_command_line() -> None:
    entrant = _entrant("multiscale_concat:units=[8,16],residual=false")
    assert not isinstance(entrant, Path)
    assert (entrant.model, entrant.options) == ("multiscale_concat", {"units": [8, 16], "residual": False})


def test_a_registered_name_goes_before_a_folder(tmp_path: Path) -> None:
    (tmp_path / "vgg16").mkdir()
    (tmp_path / "mine").mkdir()
    assert not isinstance(_entrant("vgg16"), Path)
    assert _entrant("mine") == Path("mine")


def test_configuration_of_a_run_serves_other_networks(compared: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = compared
    config = folder / runs_of(folder)[0] / "config.yaml"
    found = json.loads(invoke("compare", "alexnet_units", "--config", config, "--dry-run", "--json").stdout)
    assert found["plan"].startswith("4 iterations of 32 images")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([*SHORT], "nothing to compare"),
        (["multiscale_konkat", *SHORT], "did you mean multiscale_concat"),
        ([CONCAT, CONCAT, *SHORT], "named twice"),
        (["multiscale_concat:units=[32,64]", "multiscale_concat", *SHORT], "named twice"),  # what the recipe gives it anyway
        (["multiscale_concat:depth=3", *SHORT], "no option 'depth'"),
        (["multiscale_concat:units", *SHORT], "KEY=VALUE"),
        (["runs/absent", *SHORT], "runs/absent"),
        (["multiscale_concat"], "name a data set"),
        (["multiscale_concat", *SHORT, "--seeds", 0], "--seeds"),
        (["multiscale_concat", *SHORT, "--val-fraction", 0], "validation"),
        (["multiscale_concat", *SHORT, "--data", "digts"], "digits"),
        (["multiscale_concat", *SHORT, "--device", "gpu"], "--device"),
    ],
)
def test_what_cannot_be_compared(words: list[object], hint: str, tmp_path: Path) -> None:
    assert hint in error_of("compare", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not the folder of a finished run" in error_of("compare", "empty", *SHORT)


def test_a_run_on_other_data(compared: tuple[Path, Any]) -> None:
    folder, _ = compared
    run = folder / runs_of(folder)[0]
    assert "other data" in error_of("compare", run, *SHORT, "--size", 16)


def test_a_network_and_its_run_are_the_same_network(compared: tuple[Path, Any]) -> None:
    folder, _ = compared
    runs = [folder / name for name in runs_of(folder) if "mobilenet" in name]
    assert "named twice" in error_of("compare", runs[0], MOBILE, *SHORT)
    assert "seed 0" in error_of("compare", runs[0], runs[0], *SHORT)


def test_other_runs_in_the_output_folder_are_never_overwritten(compared: tuple[Path, Any]) -> None:
    folder, _ = compared
    before = {path: path.read_bytes() for path in folder.rglob("run.json")}
    line = error_of("compare", CONCAT, *SHORT, "--iterations", 5, "--output", folder)
    assert "iterations 4 instead of 5" in line
    assert {path: path.read_bytes() for path in folder.rglob("run.json")} == before
