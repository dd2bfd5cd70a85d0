"""Tables, plots and summaries, from small synthetic records whose figures are computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from report_records import ENVIRONMENT, record
from sepnet.errors import CheckpointError, ConfigError
from sepnet.report import (
    MAX_CLASSES,
    CountRow,
    PaperRow,
    RunRecord,
    counts_table_json,
    counts_table_markdown,
    load_record,
    markdown_table,
    mean_sd,
    paper_table_json,
    paper_table_markdown,
    run_confusion,
    run_summary,
    save_record,
    wilson_interval,
)

RECIPES = {"plain": "nearest to the paper", "modern": "settings chosen on validation"}


def row(**runs: list[RunRecord]) -> PaperRow:
    return PaperRow("Net (paper)", "net", {"accuracy": 71.5}, 529, 12_345, 12_400, 3_612_345, runs)


BUDGET: dict[str, Any] = {"data_title": "CIFAR-10", "iterations": 200, "batch_size": 128, "wanted": 3}


def markdown(*rows: PaperRow, **changes: Any) -> str:
    return paper_table_markdown("Table 4", rows, RECIPES, **(BUDGET | changes))


def cells(text: str, line: int = -1) -> list[str]:
    return [cell.strip() for cell in text.strip().splitlines()[line].strip("|").split("|")]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_mean_and_sample_standard_deviation():
    found = mean_sd([70.0, 72.0, 74.0])  # deviations -2, 0, 2: sqrt(8 / 2)
    assert (found.mean, found.sd, found.n) == (72.0, 2.0, 3)
    assert mean_sd([70.0]).sd is None
    with pytest.raises(ValueError, match="no values"):
        mean_sd([])


def test_a_part_of_the_classes_is_not_set_beside_the_paper():
    runs = [record(a, seed=s) for s, a in enumerate((70.0, 72.0, 74.0))]
    whole, part = (markdown(replace(row(plain=runs), classes=number)) for number in (3, 200))
    assert "+0.50" in whole
    assert "+0.50" not in part
    assert "72.00" in part
    assert "3 of 200 classes" in part
    assert "200 classes" not in whole


def test_row_of_complete_incomplete_and_missing_cells():
    complete = [record(a, seed=s) for s, a in enumerate((70.0, 72.0, 74.0))]
    text = markdown(row(plain=complete, modern=[record(80.0)]))
    assert cells(text) == [
        "Net (paper)", "71.5", "72.00 ± 2.00 (3)", "+0.50", "80.00 (1 of 3)", "+8.50", "529", "12,345", "3.61 M", "2.0", "2.0",
    ]  # fmt: skip
    assert cells(markdown(row()))[2:6] == ["–"] * 4
    assert cells(markdown(row(plain=[record(70.0)])))[3] == "−1.50"


def test_header_tells_what_a_reader_needs():
    runs = [record(70.0, seed=4), record(71.0, seed=5, finished="2026-01-05T00:00:00+00:00", notes=["2 files | skipped"])]
    text = markdown(row(plain=runs), notes=["a remark"])
    for fact in (
        "CIFAR-10 (JPEG copy): 50,000 training images, 10,000 test images",
        "200 iterations × 128 images",
        "2 of 6, 3 wanted for each network and recipe (seeds used: 4, 5)",
        "Some CPU, 2 cores, 8 GiB",
        "1 thread each, bf16",
        "sepnet 0.1.0 (commit abc123), Python 3.11.9, torch 2.13.0, numpy 2.3.0",
        "`sepnet reproduce wang2018`",
        "2026-01-02 to 2026-01-05",
        "nearest to the paper",
        "for the curve only; the accuracy is that of the last iteration. No choice was made on it.",
        "a remark",
        r"2 files \| skipped",
    ):
        assert fact in text
    assert "budget:" not in text


def test_reduced_budget_is_said_in_row_and_header():
    text = markdown(row(plain=[record(iterations=100)], modern=[record()]))
    said = "reduced budget: 100 of 200 iterations"
    assert cells(text)[0] == f"Net (paper) (plain: {said})"
    assert f"**{said}**" in next(line for line in text.splitlines() if line.startswith("- **Budget"))
    both = markdown(row(plain=[record(iterations=100)], modern=[record(iterations=100)]))
    assert cells(both)[0] == f"Net (paper) ({said})"
    assert "batch 64 instead of 128" in markdown(row(plain=[record(config={"batch_size": 64})]))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([record(), record()], "same seed"),
        ([record(), record(seed=1, iterations=100)], "different length"),
        ([record(), record(seed=1, data_fingerprint="other")], "different data"),
        ([record(model="another")], "stands in the row of net"),
        ([record(result={})], "no test accuracy"),
    ],
)
def test_runs_that_have_no_common_mean_are_refused(runs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        markdown(row(plain=runs))
    assert "\n" not in str(caught.value)


def test_times_of_runs_on_several_devices_are_told_apart():
    here = record(seconds=600.0)
    there = record(seed=1, seconds=30.0)
    there = there.model_copy(update={"environment": there.environment.model_copy(update={"device": "Some GPU"})})
    rows = [row(plain=[here, there])]
    assert f"10.0 on {here.environment.device}, 0.5 on Some GPU" in markdown(rows[0])
    cell = paper_table_json("Table 4", rows, RECIPES, **BUDGET)["rows"][0]["recipes"]["plain"]
    assert (cell["minutes"], cell["minutes_by_device"]["Some GPU"]) == (None, 0.5)


def test_json_holds_the_unrounded_figures_and_survives_a_round_trip():
    rows = [row(plain=[record(70.0), record(70.333, seed=1, seconds=60.0)])]
    content = paper_table_json("Table 4", rows, RECIPES, **BUDGET)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    cell = content["rows"][0]["recipes"]["plain"]
    assert cell["mean"] == pytest.approx(70.1665)
    assert cell["sd"] == pytest.approx(0.333 / 2**0.5)
    assert cell["difference"] == pytest.approx(-1.3335)
    assert (cell["n"], cell["seeds"], cell["minutes"]) == (2, [0, 1], 1.5)
    assert content["rows"][0]["recipes"]["modern"]["mean"] is None
    assert content["environments"] == [ENVIRONMENT.model_dump()]
    empty = paper_table_json("Table 4", [row()], RECIPES, **BUDGET)
    assert (empty["data"], empty["finished"]) == (["CIFAR-10"], None)


def test_table_of_counts():
    rows = [CountRow("A", "a", 1216, 1216), CountRow("B", "b", 41, 44), CountRow("C", "c", None, 7)]
    text = counts_table_markdown("Table 2", rows, notes=["N = 32"])
    assert [cells(text, i)[2:] for i in (-3, -2, -1)] == [["1,216", "1,216", "0"], ["41", "44", "+3"], ["–", "7", "–"]]
    assert "N = 32" in text
    assert counts_table_json("Table 2", rows)["rows"][1] == {"label": "B", "model": "b", "published": 41, "counted": 44}


def test_markdown_table_escapes_and_aligns():
    lines = markdown_table(["name", "count"], [["a|b <i>*x*</i>\nnext", "1,000"], ["plain_name", "–"]]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    names, counts = cells(lines[1], 0)
    assert not names.endswith(":")
    assert counts.endswith(":")
    assert r"a\|b \<i\>\*x\*\</i\>\\nnext" in lines[2]
    assert "plain_name" in lines[3]
    with pytest.raises(ValueError, match="does not fit"):
        markdown_table(["a", "b"], [["1"]])


def test_record_survives_its_file(tmp_path):
    (tmp_path / "run.json").write_bytes(save_record(record(70.123456789)))
    assert load_record(tmp_path / "run.json") == record(70.123456789)
    (tmp_path / "run.json").write_bytes(save_record(record())[:-20])
    with pytest.raises(CheckpointError, match="not a run record"):
        load_record(tmp_path / "run.json")


# --- summary ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (50, 100, 0.403832, 0.596168), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson_interval_against_published_values(correct, images, low, high):
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("correct", "images"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_what_is_no_proportion(correct, images):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(correct, images)


PER_CLASS = [
    {"class": name, "precision": 50.0, "recall": recall, "f1": 50.0, "support": 10}
    for name, recall in (("best", 90.0), ("cat|dog", 20.0), ("absent", None), ("fair", 60.0), ("poor", 40.0))
]


def test_summary_of_a_chosen_run():
    confusion = [[9, 1, 0, 0, 0], [8, 2, 0, 0, 0], [0] * 5, [0, 0, 0, 6, 4], [0, 0, 0, 6, 4]]
    test = {"accuracy": 50.0, "top5": 99.0, "loss": 0.5, "images": 100, "accuracy_tta": 52.0}
    result = {"val": test | {"accuracy": 60.0}, "test": test | {"per_class": PER_CLASS, "confusion": confusion}}
    text = run_summary(record(evaluated_on="val", result=result, config={"keep": "best"}, notes=["a *note*"]))
    assert "**50.00 %** of 100 images (95 % interval 40.38 to 59.62" in text
    assert "The validation split chose which weights were kept; the test split was used once, after training." in text
    assert "This split also chose which weights were kept, so its figure tends to be too high." in text
    assert "with test-time augmentation:** 52.00 %" in text
    assert r"a \*note\*" in text
    weakest = text[text.index("## Weakest") : text.index("## Most frequent")]
    assert weakest.index(r"cat\|dog") < weakest.index("poor") < weakest.index("fair")
    assert "best" not in weakest
    assert "absent" not in weakest
    first = cells(text[text.index("## Most frequent") :].split("\n\n")[1].replace(r"\|", "/"), 2)
    assert first == ["cat/dog", "best", "8", "80.0"]
    assert "3.61 M (3,612,345)" in text
    assert "2.0 min" in text
    assert "213 training images/s" in text  # 200 x 128 / 120
    assert text.endswith("\n")


def test_summary_says_when_there_is_no_independent_estimate():
    scores = {"accuracy": 60.0, "loss": 1.0, "images": 50}
    alone = run_summary(record(evaluated_on="val", result={"val": scores}))
    assert "chose nothing in this run. There is no test split" in alone
    assert "Test accuracy" not in alone
    assert "Nothing was held out" in run_summary(record(evaluated_on=None, result={}))
    assert "for the curve only" in run_summary(record())
    assert "100 iterations of 200 planned (stopped early)" in run_summary(record(iterations=100))


def test_summary_counts_the_images_of_a_real_batch():
    text = run_summary(record(train_images=18, iterations=1, seconds=2.0, config={"batch_size": 32, "iterations": 1}))
    assert "1 iteration × 18 images" in text
    assert "9 training images/s" in text  # 1 x 18 / 2
    assert "18 training images, 10,000 test images" in text


def test_summary_names_the_weights_that_validation_chose():
    assert "weights of iteration 100 of 200 (best on validation)" in run_summary(
        record(best_iteration=100, config={"keep": "best"})
    )
    assert "weights of iteration" not in run_summary(record(best_iteration=100))
    assert "weights of iteration" not in run_summary(record(config={"keep": "best"}))  # a record of an older version


def test_summary_leaves_out_weak_classes_where_there_are_none():
    perfect = [{"class": name, "precision": 100.0, "recall": 100.0, "f1": 100.0, "support": 3} for name in "ab"]
    scores = record().result["test"]
    assert "Weakest" not in run_summary(record(result={"test": scores | {"per_class": perfect}}))


@pytest.mark.parametrize(("classes", "missing"), [(MAX_CLASSES, False), (MAX_CLASSES + 1, True)])
def test_summary_says_why_there_is_no_confusion_matrix(classes, missing):
    rows = [{"class": str(i), "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1} for i in range(classes)]
    run = record(result={"test": record().result["test"] | {"per_class": rows, "confusion": [[1] * classes] * classes}})
    assert ("There is no confusion.png" in run_summary(run)) == missing
    assert (run_confusion(run) is None) == missing


def test_versions_that_differ_in_the_commit_alone_stand_together():
    first = record()
    other = record(seed=1)
    other = other.model_copy(update={"environment": other.environment.model_copy(update={"commit": "fedcba987654"})})
    text = markdown(row(plain=[first, other]))
    line = next(line for line in text.splitlines() if line.startswith("- **Versions:**"))
    assert line.count("torch") == 1
    assert "fedcba987654" in line
