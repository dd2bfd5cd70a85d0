"""Whatever goes wrong, the user reads one line, and a script sees the right exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli_runner import error_of, invoke, start
from sepnet.cli._errors import Stopped, split_debug, status_of
from sepnet.errors import ConfigError, DataNotFoundError


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConfigError("lr is -1"), 2, "error: lr is -1"),
        (DataNotFoundError("no\nfile"), 2, "error: no\\nfile"),
        (MemoryError(), 2, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "error: No space left on device: runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "a\x1b[2J"), 2, "error: Permission denied: a\\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("interrupted, saved"), 130, "interrupted, saved"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero; run again with --debug"),
        (RuntimeError("shape\n mismatch"), 1, "shape\\n mismatch"),
    ],
)
def test_an_exception_is_one_line_and_an_exit_code(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(raising(error), debug=False) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert text in printed.err


def test_debug_shows_where_the_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(raising(ConfigError("lr is -1")), debug=True) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: lr is -1\n")


@pytest.mark.parametrize("words", [["--debug", "info", "x"], ["info", "x", "--debug"], ["info", "--debug", "x"]], ids=" ".join)
def test_debug_goes_anywhere(words: list[str]) -> None:
    assert split_debug(words) == (["info", "x"], True)


def test_debug_behind_two_dashes_is_an_argument() -> None:
    assert split_debug(["info", "--", "--debug"]) == (["info", "--", "--debug"], False)


@pytest.mark.parametrize(("value", "debug"), [("1", True), ("0", False), ("", False)])
def test_debug_from_the_environment(value: str, debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPNET_DEBUG", value)
    assert split_debug(["info"]) == (["info"], debug)


def test_other_processes_of_torchrun_say_which_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    status_of(raising(ConfigError("lr is -1")), debug=False)
    assert capsys.readouterr().err == "error (process 3): lr is -1\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("--version", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


# --- the command line itself ------------------------------------------------------------------------------------------


def test_version() -> None:
    assert invoke("--version").stdout.startswith("sepnet ")


def test_no_command_shows_the_help() -> None:
    result = invoke()
    assert "train" in result.stdout
    assert "reproduce" in result.stdout
    assert "sepnet data get NAME" in invoke("data").stdout, "the list, which says how to go on"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "digits"], "did you mean train"),
        (["train", "digits", "--epoch", "3"], "did you mean --epochs"),
        (["train", "digits", "--epochs", "three"], "--epochs"),
        (["predict"], "see sepnet predict --help"),
        (["data", "chek", "x"], "No such command 'chek'"),
        (["info", "multiscale_concat", "two"], "see sepnet info --help"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_one_line_with_a_hint(words: list[str], hint: str) -> None:
    assert hint in error_of(*words)


# --- sepnet train refuses -----------------------------------------------------------------------------------------------


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (sum(path.name.encode()) % 256, 40, 90)).save(path)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_no_data() -> None:
    assert "sepnet train digits" in error_of("train")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "images" in error_of("train", tmp_path / "images")


def test_one_class(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "images" / "cat" / f"{i}.png")
    assert "one class" in error_of("train", tmp_path / "images")


def test_data_set_that_is_not_there() -> None:
    assert "nowhere" in error_of("train", "mnist", "--data-dir", "nowhere")


def test_two_lengths() -> None:
    assert "give one of them" in error_of("train", "digits", "--epochs", 2, "--iterations", 20)
    Path("both.yaml").write_text("epochs: 3\niterations: 4\n")
    assert "both.yaml: epochs and iterations" in error_of("train", "digits", "--config", "both.yaml")


@pytest.mark.parametrize("key", ["num_classes", "in_channels", "input_size"])
def test_options_that_follow_from_the_data(key: str) -> None:
    for words in (("train", "digits", "--model-kwargs", f"{key}=5"), ("compare", f"multiscale_concat:{key}=5", "--data", "digits")):
        assert f"{key} follows from the data" in error_of(*words)
    assert f"--model-kwargs {key}: it is set by --" in error_of("info", "multiscale_concat", "--model-kwargs", f"{key}=5")


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 3000])
def test_names_that_no_file_system_takes(name: str) -> None:
    assert "too long" in error_of("train", name)
    assert "too long" in error_of("train", "mnist", "--data-dir", name)


def test_unknown_data_set() -> None:
    assert "did you mean digits" in error_of("train", "digit")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--model", "multiscale_concatt"], "did you mean multiscale_concat"),
        (["--recipe", "autto"], "did you mean auto"),
        (["--model-kwargs", "unit=[8]"], "units"),
        (["--model-kwargs", "units"], "KEY=VALUE"),
        (["--model-kwargs", "units=[8"], "not valid YAML"),
        (["--model-kwargs", "units=[8]", "--model-kwargs", "units=[9]"], "twice"),
        (["--batch-size", "0"], "--batch-size"),
        (["--lr", "-1"], "lr"),
        (["--opt", "sdg"], "'sgd'"),
        (["--hflip", "maybe"], "hflip"),
        (["--device", "tpu"], "choose auto, cpu"),
        (["--workers", "0"], "--workers"),
        (["--resume", "nowhere"], "no run to resume at nowhere"),
        (["--resume", "a", "--output", "b"], "--resume"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=" ".join,
)
def test_a_value_that_cannot_be_used(words: list[str], hint: str) -> None:
    assert hint in error_of("train", "digits", "--iterations", "2", *words)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("epoch: 3", "did you mean epochs"),
        ("- 1", "key: value"),
        ("a: [", "not valid YAML"),
        ("lr: 1\nlr: 2", "stands there twice"),
    ],
)
def test_a_configuration_that_cannot_be_used(text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text)
    line = error_of("train", "digits", "--config", "my.yaml")
    assert "my.yaml" in line
    assert hint in line


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    result = invoke("train", "digits", "--iterations", "2", "--output", "closed", exit_code=2)
    assert result.stderr.splitlines()[-1].startswith("error: cannot write closed/config.yaml: Permission denied")


def test_sigterm_before_training_begins_is_an_interruption(tmp_path: Path) -> None:
    """Before training itself listens for it. A configuration that is a named pipe holds it up for as long as this takes."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "1.png")
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    process = start("train", str(tmp_path), "--config", str(begun))
    with begun.open("w"):  # opened as soon as the command reads its configuration, which then waits for this end
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (130, "interrupted\n")


def test_kernels_of_a_network_are_refused() -> None:
    assert "leave squeezenet away" in error_of("info", "squeezenet", "--kernels")


@pytest.mark.parametrize(
    "words", [("train", "nowhere"), ("val", "nowhere"), ("predict", "nowhere", "x"), ("reproduce", "luo")], ids="-".join
)
def test_a_device_that_is_not_there_is_found_before_anything_is_read(words: tuple[str, ...]) -> None:
    assert error_of(*words, "--device", "cuda:x") == "error: --device cuda:x: choose auto, cpu, cuda, cuda:N or mps"
