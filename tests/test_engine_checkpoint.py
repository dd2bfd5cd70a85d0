"""Checkpoints are whole or not there, and reading one never runs what it holds."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sepnet.engine import atomic_write, load_checkpoint, save_checkpoint
from sepnet.engine.checkpoint import FORMAT, remove_leftovers
from sepnet.errors import CheckpointError, OutputError, one_line
from training_tools import config, parts_in, run, same_weights, tiny_net


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._target),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.arange(3000.0), "names": ["a", "b"]})
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert one_line(path.name) in message
    assert "\n" not in message
    return message


def test_round_trip(saved: Path) -> None:
    state = load_checkpoint(saved)
    assert torch.equal(state.pop("weights"), torch.arange(3000.0))
    assert state == {"format": FORMAT, "names": ["a", "b"]}
    assert parts_in(saved.parent) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"",
        lambda whole: b"epoch 1: 12.5 %\n",
        lambda whole: bytes(len(whole)),
        lambda whole: b"PK" + whole[2:100],
        lambda whole: whole[100:],
    ],
    ids=["half", "last byte", "empty", "text", "zeros", "head", "tail"],
)
def test_damaged(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    assert "cut short or damaged" in refused(saved)


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_is_noticed_or_harmless(saved: Path, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(saved.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    expected = load_checkpoint(saved)
    saved.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        state = load_checkpoint(saved)
        assert torch.equal(state["weights"], expected["weights"])
        assert state["names"] == expected["names"]


def test_a_flipped_bit_of_a_tensor_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    at = content.find(torch.arange(3000.0).numpy().tobytes())
    assert at > 0
    content[at + 500] ^= 1
    saved.write_bytes(content)
    assert "damaged" in refused(saved)


def test_code_is_not_run(tmp_path: Path) -> None:
    target, plain, packed = tmp_path / "made", tmp_path / "plain.pt", tmp_path / "packed.pt"
    plain.write_bytes(pickle.dumps({"format": FORMAT, "model": Evil(target)}))
    torch.save({"format": FORMAT, "model": Evil(target)}, packed)
    refused(plain)
    assert "refused, nothing was run" in refused(packed)
    assert not target.exists()


def test_what_would_unpack_to_more_than_it_is(saved: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    refused(bomb)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "not a checkpoint of sepnet"),
        ({"weights": torch.zeros(2)}, "not a checkpoint of sepnet"),
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"format": torch.ones(3)}, "format"),
    ],
    ids=str,
)
def test_foreign(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "last.pt")
    assert said in refused(tmp_path / "last.pt")


def test_not_there(tmp_path: Path) -> None:
    assert "no checkpoint at" in refused(tmp_path / "last.pt")
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt")
    refused(tmp_path / "a\nb\udce9.pt")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_earlier_file(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step != "write":
        monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    before = saved.read_bytes()
    write = full if step == "write" else lambda file: file.write(bytes(5000))
    with pytest.raises(OutputError, match=r"last\.pt: No space left on device; the earlier file is untouched$"):
        atomic_write(saved, write)
    assert saved.read_bytes() == before
    assert parts_in(saved.parent) == []


def test_any_failure_of_the_writer_leaves_the_earlier_file(saved: Path) -> None:
    def fails(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    before = saved.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        atomic_write(saved, fails)
    assert saved.read_bytes() == before
    assert parts_in(saved.parent) == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write") as caught:
        save_checkpoint(tmp_path / "file" / "deeper" / "last.pt", {})
    assert "\n" not in str(caught.value)


LIMITED = """
import resource, sys, torch
from pathlib import Path
from sepnet.engine import save_checkpoint
from sepnet.errors import OutputError
path = Path(sys.argv[1])
save_checkpoint(path, {"weights": torch.arange(1000.)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(path, {"weights": torch.zeros(1_000_000)})
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX's")
def test_a_write_that_the_system_really_refuses(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert done.stdout.endswith("; the earlier file is untouched\n")
    assert done.stdout.count("\n") == 1
    assert torch.equal(load_checkpoint(path)["weights"], torch.arange(1000.0))
    assert parts_in(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.pt.abc.part", ".metrics.csv.x.part", "mine.part", ".hidden", "last.pt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "last.pt", "mine.part"]
    remove_leftovers(tmp_path / "not there")


# --- resuming from what is not this run's -----------------------------------------------------------------------------


def test_a_full_disk_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(checkpoint_seconds=0, ema=0.9)
    left = iter(range(5))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fills_up(path: Path, content: dict[str, Any]) -> None:
        if next(left, None) is None:
            monkeypatch.setattr(os, "fsync", full)
        save_checkpoint(path, content)

    monkeypatch.setattr(sys.modules["sepnet.engine.fit"], "save_checkpoint", fills_up)  # the function fit hides the module
    with pytest.raises(OutputError, match=r"last\.pt: No space left on device"):
        run(settings, run_dir=tmp_path)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["state"]["iteration"] == 5
    assert parts_in(tmp_path) == []
    resumed = run(settings, run_dir=tmp_path, resume=True)
    assert same_weights(resumed.model.state_dict(), run(settings).model.state_dict())


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run(config(), run_dir=tmp_path, identity={"data set": "digits (abc)"})
    return tmp_path


def not_resumed(folder: Path, settings: Any = None, **options: Any) -> str:
    options = {"identity": {"data set": "digits (abc)"}, **options}
    with pytest.raises(CheckpointError) as caught:
        run(settings or config(), run_dir=folder, resume=True, **options)
    message = str(caught.value)
    assert str(folder / "last.pt") in message
    assert "\n" not in message
    return message


def test_another_network(finished: Path) -> None:
    assert "does not fit this network" in not_resumed(finished, model=tiny_net(width=8))
    assert "does not fit this network" in not_resumed(finished, model=tiny_net(norm=False))


def test_another_data_set(finished: Path) -> None:
    message = not_resumed(finished, identity={"data set": "mnist (def)"})
    assert "trained with data set digits (abc), this run has data set mnist (def)" in message
    assert "--output" in message


def test_another_length(finished: Path) -> None:
    assert "12 iterations" in not_resumed(finished, config(iterations=13))


def test_another_optimiser_or_average(finished: Path) -> None:
    assert "optimiser sgd, this run has optimiser adam" in not_resumed(finished, config(opt="adam"))
    assert "does not fit" in not_resumed(finished, config(ema=0.9))


@pytest.mark.parametrize(
    "broken",
    [
        {"identity": None},
        {"state": {"iteration": "many"}},
        {"state": {"iteration": -1}},
        {"state": {"history": [{"iteration": "x"}]}},
        {"state": None},
        {"rng": torch.zeros(3)},
        {"optimizer": {}},
        {"model": None},
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else(finished: Path, broken: dict[str, Any]) -> None:
    save_checkpoint(finished / "last.pt", load_checkpoint(finished / "last.pt") | broken)
    not_resumed(finished)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert "no checkpoint" in not_resumed(tmp_path)
    with pytest.raises(ValueError, match="run_dir"):
        run(config(), resume=True)
