"""The Pareto front, and the table and figure of a comparison, from small synthetic records."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from report_records import ENVIRONMENT, record
from sepnet.report import (
    ComparedNetwork,
    Speed,
    comparison_cells,
    comparison_json,
    comparison_markdown,
    fronts,
    pareto_front,
    tradeoff,
    tradeoff_figure,
)

# few values, so that ties are common
points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(points)
def test_front_is_what_nothing_dominates(found: list[tuple[int, int]]) -> None:
    front = pareto_front([c for c, _ in found], [v for _, v in found])
    assert list(front) == [not any(dominates(other, point) for other in found) for point in found]


@given(points)
def test_whatever_is_not_on_the_front_is_dominated_from_it(found: list[tuple[int, int]]) -> None:
    front = pareto_front([c for c, _ in found], [v for _, v in found])
    best = [point for point, on_front in zip(found, front, strict=True) if on_front]
    assert bool(best) == bool(found)
    for point, on_front in zip(found, front, strict=True):
        assert on_front or any(dominates(other, point) for other in best)


def test_front_with_ties() -> None:
    assert pareto_front([1, 1, 1, 2, 2], [5, 5, 4, 5, 6]) == (True, True, False, False, True)
    assert pareto_front([], []) == ()
    with pytest.raises(ValueError, match="not a number"):
        pareto_front([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="shorter"):
        pareto_front([1.0], [])


def network(label: str, params: int, accuracies: tuple[float, ...], ms: float = 1.0, **changes: Any) -> ComparedNetwork:
    runs = [
        record(
            seed=seed,
            params_trainable=params,
            macs=10 * params,
            evaluated_on="val",
            result={"val": {"accuracy": a, "images": 5000}, "test": {"accuracy": a - 1, "images": 10_000}},
            **changes,
        )
        for seed, a in enumerate(accuracies)
    ]
    return ComparedNetwork(label, runs, Speed(1, ms, 1.5 * ms, ms, 0.1, 30), Speed(128, 64.0, 70.0, 65.0, 1.0, 20))


SMALL = network("small", 1_000, (70.0, 72.0), ms=2.0)
LARGE = network("large", 50_000, (80.0, 81.0), ms=1.0)
WASTEFUL = network("wasteful", 60_000, (60.0,), ms=30.0)
ALL = (LARGE, WASTEFUL, SMALL)


def test_cheapest_first_with_deviation_and_front() -> None:
    header, rows = comparison_cells(ALL)
    assert header[3:7] == ["validation %", "test %", "ms (p90), batch 1", "images/s, batch 128"]
    assert rows == [
        ["small", "1,000", "10.0 k", "71.00 ± 1.41 (2)", "70.00 ± 1.41 (2)", "2.00 (3.00)", "2,000", "parameters, MACs"],
        ["large", "50,000", "500 k", "80.50 ± 0.71 (2)", "79.50 ± 0.71 (2)", "1.00 (1.50)", "2,000", "parameters, MACs, latency"],
        ["wasteful", "60,000", "600 k", "60.00 (1)", "59.00 (1)", "30.0 (45.0)", "2,000", "–"],
    ]
    assert fronts(ALL)["latency_ms"] == (True, False, False)
    with pytest.raises(ValueError, match="no networks"):
        comparison_cells([])


def test_front_does_not_look_at_the_test_split() -> None:
    lucky = network("lucky", 70_000, (50.0,))
    lucky.runs[0].result["test"]["accuracy"] = 99.0
    assert fronts([LARGE, lucky])["macs"] == (True, False)


def test_a_network_needs_runs_with_validation() -> None:
    for runs in ([], [record()]):
        with pytest.raises(ValueError, match="validation accuracy"):
            ComparedNetwork("x", runs, SMALL.single, SMALL.batch)


def test_page_and_json_say_the_same() -> None:
    told = {"command": "sepnet compare", "plan": "200 iterations", "notes": ["a *note*"]}
    page = comparison_markdown(ALL, ENVIRONMENT, **told)
    for part in ("50,000 training images; 5,000 validation images; 10,000 test images", r"a \*note\*", "Some CPU, 1 thread, bf16"):
        assert part in page
    assert "high side" not in page
    content = json.loads(json.dumps(comparison_json(ALL, ENVIRONMENT, settings={"lr": 0.1}, **told)))
    assert [row["label"] for row in content["networks"]] == ["large", "wasteful", "small"]
    assert content["networks"][0]["front"] == {"params_trainable": True, "macs": True, "latency_ms": True}
    assert content["networks"][0]["throughput"]["images_per_s"] == 2000
    best = network("best", 10, (70.0,), config={"keep": "best"}, best_iteration=100)
    assert "high side" in comparison_markdown([best], ENVIRONMENT, command="c", plan="p")


def texts_overlap(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of names in one panel whose boxes share some area."""
    found = []
    for axes in figure.axes:
        boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
        for i, (name, box) in enumerate(boxes):
            found += [(name, other) for other, at in boxes[i + 1 :] if box.overlaps(at)]
    return found


def test_figure_is_deterministic_and_its_names_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    encode = tradeoff.png
    monkeypatch.setattr(tradeoff, "png", lambda figure: (drawn.append(figure), encode(figure))[1])
    crowd = [network(f"network number {i}", 1000 + 20 * i, (70.0 + i / 20, 70.5 + i / 20), ms=1 + i / 50) for i in range(8)]
    first = tradeoff_figure(crowd, "Title", "subtitle")
    assert tradeoff_figure(crowd, "Title", "subtitle") == first
    assert Image.open(io.BytesIO(first)).size == (2160, 840)
    assert len(drawn[0].axes) == 3
    assert [len(axes.texts) for axes in drawn[0].axes] == [8, 8, 8]
    assert texts_overlap(drawn[0]) == []
    assert all(axes.get_xscale() == "log" and len(axes.get_xticks()) >= 2 for axes in drawn[0].axes)


@pytest.mark.parametrize(
    "networks",
    [[SMALL], [network(r"$x_{猫}^", 1, (100.0,), ms=1e-3)], [SMALL, network("twin", 1_000, (70.0, 72.0), ms=2.0)]],
    ids=["one", "odd", "twins"],
)
def test_figure_of_any_networks(networks: list[ComparedNetwork]) -> None:
    assert tradeoff_figure(networks, "Title").startswith(b"\x89PNG")


def test_figure_needs_networks() -> None:
    with pytest.raises(ValueError, match="no networks"):
        tradeoff_figure([], "Title")
