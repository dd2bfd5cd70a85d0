"""The benchmarks with tiny settings: that they compare like with like, and write what they should. Nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmark_scripts import FOLDER, script, written
from sepnet.kernels import library
from sepnet.kernels._library import reference_wanted

SCRIPTS = (
    "augment",
    "inference",
    "kernels",
    "muon",
    "pointwise",
    "roofline",
    "run",
    "same_accuracy",
    "time_to_accuracy",
    "train_step",
)
ON_A_GPU = ("gpu_kernels", "gpu_train_step")  # not among those of run.py
DESCRIBED = (
    "multiscale_concat",
    "multiscale_add",
    "mobilenet_units",
    "alexnet_units",
    "separable_cnn",
    "separable_cnn_printed",
    "dilated_separable",
    "dsrnet50_printed",
    "mobilenet_v1",
    "resnet50",
)
KERAS_PYTHON = os.environ.get("SEPNET_KERAS_PYTHON") or (sys.executable if find_spec("tensorflow") else None)


@pytest.mark.parametrize("name", SCRIPTS + ON_A_GPU)
def test_every_script_has_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script(name).parse(["--help"])
    assert end.value.code == 0
    assert "--threads" in capsys.readouterr().out


def test_all_scripts_are_known() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")) == sorted(SCRIPTS + ON_A_GPU)


# --- the shared part -------------------------------------------------------------------------------------------------------


def test_turns_and_statistics() -> None:
    bench = script("_bench")
    seen: list[tuple[str, int]] = []
    work = {name: lambda i, name=name: seen.append((name, i)) for name in "ab"}
    times = bench.in_turns(work, rounds=4, warm_up=2)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    assert all({name for name, _ in seen[i : i + 2]} == {"a", "b"} for i in range(0, 12, 2))
    assert [i for name, i in seen if name == "a"] == [0, 0, 0, 1, 2, 3]
    assert len(bench.in_turns(work, rounds=50, seconds=0.0, least=3)["a"]) == 3
    figures = bench.figures_of([1.0, 2.0, 3.0, 10.0], 0.5, 0.99)
    assert figures == {"median_ms": 2.5, "mean_ms": 4.0, "sd_ms": 4.0825, "n": 4, "p50_ms": 2.0, "p99_ms": 10.0}
    assert [bench.percentile(range(1, 101), share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]


def test_the_command_names_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/x.py", "--output", "/home/me/out", "--data-dir", "data"])
    assert script("_bench").command() == "python benchmarks/x.py --output .../out --data-dir data"


# --- like with like --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_plain_network_computes_the_same(name: str) -> None:
    describe, plain = script("_describe"), script("_plain")
    ours = describe.build(name)
    peer = plain.plain(describe.describe(ours))
    assert {type(m).__module__.split(".")[0] for m in peer.modules()} <= {"torch", "_plain"}
    plain.copy_weights(ours, peer)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(peer(x), ours(x), rtol=1e-3, atol=1e-3)


def test_the_border_is_part_of_the_description() -> None:
    describe = script("_describe")
    layers = {border: describe.describe(describe.build("multiscale_add", border=border)) for border in ("once", "layer")}
    paddings = {b: [layer["padding"] for branch in d[0]["branches"] for layer in branch] for b, d in layers.items()}
    assert paddings == {"once": [[1, 1], [2, 2], [0, 0]], "layer": [[1, 1], [1, 1], [1, 1]]}


def test_other_networks_are_refused() -> None:
    describe, plain = script("_describe"), script("_plain")
    with pytest.raises(TypeError, match=r"cannot build \w+ of"):
        describe.describe(describe.build("squeezenet"))
    with pytest.raises(ValueError, match="differ"):
        plain.copy_weights(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))


@pytest.mark.skipif(KERAS_PYTHON is None, reason="no TensorFlow: pip install -e '.[bench]', or name one by SEPNET_KERAS_PYTHON")
@pytest.mark.parametrize("name", ["multiscale_concat", "dilated_separable"])
def test_the_keras_network_has_the_same_parameters(name: str) -> None:
    describe, workers = script("_describe"), script("_workers")
    model = describe.build(name)
    job = {"kind": "keras", "task": "train", "layers": describe.describe(model), "size": 32, "batch": 2, "threads": 1, "lr": 0.01}
    with workers.worker("_keras_worker.py", job, KERAS_PYTHON) as running:
        assert running.facts["parameters"] == sum(p.numel() for p in model.parameters())
        assert len(running.steps(1)) == 1


# --- kernels ---------------------------------------------------------------------------------------------------------------


def test_shapes_of_networks() -> None:
    found = script("_shapes").network_shapes(["multiscale_concat", "separable_cnn", "dilated_separable", "alexnet_units"])
    labels = {shape.label(): users for shape, users in found.items()}
    assert labels["128 x 32 x 16x16, 3x3 + 5x5"] == ["multiscale_concat"]
    assert labels["128 x 64 x 32x32, 3x3, stride 2, bias"] == ["separable_cnn"]
    assert labels["128 x 3 x 32x32, 3x3, dilation 5, weights only"] == ["dilated_separable"]
    assert len(labels) == 3 + 7 + 8
    shape = next(s for s in found if s.label() == "128 x 64 x 32x32, 3x3, stride 2, bias")
    x, y, weight = 2 * 128 * 64 * 32 * 32, 2 * 128 * 64 * 16 * 16, 4 * 64 * 9
    assert shape.moved_bytes("forward", 2) == x + y + weight
    assert shape.moved_bytes("backward", 2) == 2 * x + y + weight


def test_the_sweep_is_what_was_asked_for() -> None:
    shapes = list(script("_shapes").sweep())
    assert {s.channels for s in shapes} == {64, 256}
    assert {s.height for s in shapes} == {8, 16, 32, 56}
    assert {(s.geometry.kernels[0][0], s.geometry.stride[0]) for s in shapes} == {(k, s) for k in (3, 5, 7) for s in (1, 2)}
    assert {s.geometry.dilations[0][0] for s in shapes} == {1, 2, 3, 5}
    assert all(s.geometry.output_size(s.height, s.width)[0] == -(-s.height // s.geometry.stride[0]) for s in shapes)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_wrong_results_are_not_timed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, shapes = script("_kernel_cases"), script("_shapes")
    geometry = next(shapes.sweep()).geometry
    case = cases.Case(shapes.Shape(2, 5, 6, 6, geometry, bias=True), dtype)
    case.check()
    right = cases._ours
    monkeypatch.setattr(cases, "_ours", lambda operands, shape: 1.1 * right(operands, shape))
    with pytest.raises(ArithmeticError, match=r"2 x 5 x 6x6, 3x3, bias, \w+: the output is off by"):
        case.check()


def test_maps_are_passed_on_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, shapes = script("_kernel_cases"), script("_shapes")
    case = cases.Case(shapes.Shape(1, 2, 3, 3, next(shapes.sweep()).geometry, bias=False), "fp32", control=True)
    used: dict[str, list[int]] = {}

    def note(name: str) -> Callable[..., Any]:
        return lambda operands, shape: used.setdefault(name, []).append(operands.x.data_ptr())

    monkeypatch.setattr(cases, "_ours", note("ours"))
    monkeypatch.setattr(cases, "_torch", note("torch"))
    calls = case.calls("forward")
    for number in range(4):
        calls[cases.OURS](number)
        calls[cases.CHANNELS_LAST](number)
        calls[cases.CONTROL](number)
    ours, theirs, again = used["ours"], used["torch"][::2], used["torch"][1::2]
    assert set(ours) == set(theirs) == set(again)
    assert all(len({*meet}) == 3 for meet in zip(ours, theirs, again, strict=True))  # never two at the same
    calls[cases.NCHW](0)
    assert used["torch"][-1] not in ours


def test_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = script("_kernel_cases")
    cases.Copy.MEBIBYTES = 1
    options = ["--quick", "--threads", "1", "--networks", "multiscale_concat", "separable_cnn", "--output", str(tmp_path)]
    script("kernels").main(options)
    content = written(tmp_path, "kernels-1-thread")
    assert "## Shapes of the registered networks" in capsys.readouterr().out
    assert {(row["dtype"], row["direction"]) for row in content["figures"]} == {
        (dtype, direction) for dtype in ("bf16", "fp32") for direction in ("forward", "backward")
    }
    for row in content["figures"]:
        assert row["ratio"] > 0
        assert {cases.OURS, cases.NCHW, cases.CHANNELS_LAST, cases.CONTROL} <= set(row)
        assert row[cases.OURS]["n"] == 5


def test_targets_name_what_misses_them() -> None:
    cases, shapes, targets = script("_kernel_cases"), script("_shapes"), script("_kernel_targets")
    dilated = next(s for s in shapes.sweep() if s.height == 16 and s.geometry.dilations[0] == (2, 2))

    def row(channels: int, times: float, direction: str = "backward") -> Any:
        measured = {cases.OURS: 1.0, cases.CHANNELS_LAST: times, cases.NCHW: 0.9, cases.CONTROL: 8.0}
        figures = {name: {"median_ms": value} for name, value in measured.items()}
        return targets.Row(dilated._replace(channels=channels), ("net",), "bf16", direction, figures)

    rows = [row(64, 9.0), row(128, 7.0), row(32, 1.0), row(64, 1.0, "forward")]
    found = {v.target.what: v for v in targets.verdicts(rows, 40.0, None)}
    dilation = found["bf16 backward to channels_last, dilation > 1, up to 5x5 (maps from 8x8, from 64 channels)"]
    assert dilation.line.endswith("at least 8.00x reached by 1 of 2; median 8.00x, least 7.00x (" + rows[1].label + ")")
    assert [(r.shape.channels, value) for r, value in dilation.missed] == [(128, 7.0)]
    never = found["networks' shapes, to the better of PyTorch's layouts"]
    assert len(never.missed) == 4  # 0.9 of the time in NCHW
    assert never.line.endswith("; of PyTorch's in channels_last to itself 1 of 4 do (median 0.50x, least 0.12x)")
    assert f"- {rows[1].label}: 7.00x" in targets.misses(list(found.values()))


def test_augment(tmp_path: Path) -> None:
    script("augment").main(["--quick", "--batch-size", "4", "--output", str(tmp_path)])
    content = written(tmp_path, "augment-1-thread")
    assert content["figures"][-1]["operation"] == "training step of multiscale_concat"


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="the kernels are not built here")
def test_same_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both paths serve as asked, a second call repeats nothing, and a difference wants two seeds of both."""
    words = ["--quick", "--threads", "1", "--output", str(tmp_path)]
    script("same_accuracy").main(words)
    runs = written(tmp_path, "same_accuracy")["figures"]
    assert [(run["kernels"], run["computed"] == "PyTorch") for run in runs] == 2 * [("native", False), ("reference", True)]
    assert "too few seeds" in capsys.readouterr().out
    before = (tmp_path / "same_accuracy.json").stat().st_ino
    script("same_accuracy").main(words)
    assert "4/4" not in capsys.readouterr().err
    assert written(tmp_path, "same_accuracy")["figures"] == runs
    assert (tmp_path / "same_accuracy.json").stat().st_ino != before


def test_recipes_of_same_accuracy_have_files_of_their_own() -> None:
    bench = script("same_accuracy")
    assert bench.name_of(bench.parse([])) == "same_accuracy"
    assert bench.name_of(bench.parse(["--recipe", "wang2018-modern"])) == "same_accuracy-modern"


def test_same_accuracy_compares_means() -> None:
    kinds = {"native": (70.0, 72.0), "reference": (69.0, 71.0)}
    runs = [
        {"model": "net", "precision": "bf16", "kernels": kernels, "seed": seed, "accuracy": value}
        for kernels, values in kinds.items()
        for seed, value in enumerate(values)
    ]
    found = script("same_accuracy").difference(runs, "net", "bf16")
    assert found == pytest.approx((1.0, 2**0.5))
    assert script("same_accuracy").headline(runs, ["net"]) == [
        "net, bf16: +1.00 points with the kernels, within two standard errors of 0"
    ]
    assert script("same_accuracy").difference(runs[:3], "net", "bf16") is None


# --- on a GPU, as far as it goes without one -------------------------------------------------------------------------------


def test_the_shapes_for_a_gpu_are_listed_without_one() -> None:
    command = [sys.executable, str(FOLDER / "gpu_kernels.py"), "--list", "--networks", "dilated_separable"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "128 x 512 x 8x8, 3x3, stride 2, dilation 5" in done.stdout


@pytest.mark.parametrize("name", ON_A_GPU)
def test_without_a_gpu_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for there, reason in ((False, "this machine has no CUDA device"), (True, "no triton")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(script("_on_gpu"), "why_not_triton", lambda device: "no triton")
        with pytest.raises(SystemExit) as end:
            script(name).main([])
        assert end.value.code == 2
        assert capsys.readouterr() == ("", f"{name}: {reason}\n")


def test_a_limit_of_time_loses_no_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, measured = script("gpu_kernels"), 0

    def measure(shape: Any, rounds: int) -> Any:
        nonlocal measured
        measured += 1
        if measured == 4:
            raise KeyboardInterrupt
        names = (bench.TRITON, bench.CHANNELS_LAST, *([] if isinstance(shape, bench.NormShape) else [bench.NCHW]))
        return dict(zip(names, ((0.1, 0.2), (0.3, 0.3), (0.2, 0.9)), strict=False))

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "demand_gpu", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("sepnet.report.record.kernels_in_use", lambda device: "Triton")  # PyTorch for CUDA would look for a driver
    options = ["--networks", "separable_cnn", "--jobs", "1", "--threads", "1", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        bench.main(options)
    cut = written(tmp_path, "gpu_kernels")
    assert [row["kind"] for row in cut["figures"]] == ["depthwise", "norm", "depthwise"]
    assert cut["headline"][-1].startswith("cut off: 3 of ")
    bench.main(options)
    whole = written(tmp_path, "gpu_kernels")
    assert cut["headline"][-1] == f"cut off: 3 of {len(whole['figures'])} shapes"
    assert whole["headline"][0].startswith("depthwise, forward: 2.00 to 2.00 (median 2.00) times as fast as")
    assert "cut off" not in " ".join(whole["headline"])


def test_shapes_are_compiled_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, done = script("gpu_kernels"), list[str]()
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(bench, "compile_one", done.append)
    shapes = [("norm", name) for name in "abcde"]
    assert [(name, len(done)) for _, name in bench.compiled(shapes, 2)] == [("a", 2), ("b", 2), ("c", 4), ("d", 4), ("e", 5)]
    assert list(bench.compiled(shapes, 1)) == shapes
    assert len(done) == 5


def test_the_steps_for_a_gpu_are_those_of_the_papers() -> None:
    networks = script("gpu_train_step").NETWORKS
    with torch.device("meta"):
        shapes = {n.label(): n.build()(torch.empty(2, n.channels, n.size, n.size)).shape for n in networks.values()}
    assert set(shapes.values()) == {(2, 10)}
    assert {"dilated_separable, rate 2", "multiscale_add, units (32, 64), 1x28x28"} < set(shapes)
    assert [n.model for n in networks.values() if n.batch == 64] == ["separable_cnn", "standard_cnn"]


def test_training_steps_run_on_a_cpu_as_written(tmp_path: Path) -> None:
    bench = script("gpu_train_step")
    options = ["--device", "cpu", "--quick", "--threads", "1", "--opt", "sgd", "--networks", "multiscale_add", "vgg16"]
    bench.main([*options, "--output", str(tmp_path)])
    content = written(tmp_path, "gpu_train_step")
    (row,) = content["figures"]
    assert (row["batch"], row["image"], row["contenders"][bench.EAGER]["n"]) == (8, [1, 28, 28], 2)
    assert list(row["contenders"]) == [bench.EAGER]
    assert row["failed"] == dict.fromkeys([bench.GRAPH, bench.REFERENCE], "the step was not recorded as a graph on cpu")
    assert content["headline"] == [f"{name} did not run (multiscale_add): {reason}" for name, reason in row["failed"].items()]


def test_a_contenders_steps_take_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the warm-up too, in which a graph is recorded; and a graph that was not recorded is not taken for one."""
    bench, seen, graph = script("gpu_train_step"), list[Any](), SimpleNamespace(_recording=object())

    class Step:
        warm_up = 2

        def __init__(self, *arguments: object) -> None:
            self._compute, self._update = None, graph

        def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
            assert x.shape == (128, 1, 28, 28)
            seen.append((self._update is graph, reference_wanted()))

    monkeypatch.setattr(bench, "TrainingStep", Step)
    monkeypatch.setattr(bench, "GraphedStep", SimpleNamespace)
    args, network = bench.parse(["--steps", "3"]), bench.NETWORKS["multiscale_add"]
    fabric = SimpleNamespace(device=torch.device("cpu"))
    for name, way in bench.CONTENDERS.items():
        turn = bench.prepare(network, way, fabric, args)
        seen.append(name)
        turn(0)
        kind = (name != bench.EAGER, name == bench.REFERENCE)
        assert seen == [kind, kind, name, kind, kind, kind]
        seen.clear()
    graph._recording = None
    with pytest.raises(RuntimeError, match="not recorded as a graph on cpu"):
        bench.prepare(network, bench.CONTENDERS[bench.GRAPH], fabric, args)


def test_steps_are_compared_and_kept_until_a_limit_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("gpu_train_step")

    def prepare(network: Any, way: Any, fabric: object, args: object) -> str:
        if network.model == "vgg16" and way.reference:
            raise RuntimeError("out of memory")
        if network.model == "resnet50":
            raise KeyboardInterrupt
        return network.model

    milliseconds = {bench.EAGER: [80.0, 120.0, 90.0], bench.GRAPH: [22.5] * 3, bench.REFERENCE: [45.0] * 3}
    monkeypatch.setattr(bench, "prepare", prepare)
    monkeypatch.setattr(bench, "in_turns", lambda work, **options: {name: milliseconds[name] for name in work})
    options = ["--networks", "dsrnet50", "vgg16", "resnet50", "--steps", "10", "--device", "cpu", "--threads", "1"]
    with pytest.raises(KeyboardInterrupt):
        bench.main([*options, "--output", str(tmp_path)])
    content = written(tmp_path, "gpu_train_step")
    assert content["headline"] == [
        "times faster as a graph than as written: dsrnet50 4.00x, vgg16 4.00x",
        "times faster as a graph than as PyTorch's: dsrnet50 2.00x",
        "PyTorch's graph did not run (vgg16): out of memory",
        "cut off: 2 of 3 networks",
    ]
    assert content["figures"][0]["contenders"][bench.EAGER]["median_ms"] == 9.0  # a step: a tenth of a turn
    page = (tmp_path / "gpu_train_step.md").read_text(encoding="utf-8").replace(" ", "")
    assert "|vgg16|128|9.00±2.08|2.25±0.00||4.00||" in page
