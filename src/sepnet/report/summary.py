"""The report of one run as a page of Markdown: what was run, what came out, what that is worth, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from sepnet.report._markdown import bullet, counted, escape, human_count, markdown_table, percent
from sepnet.report._provenance import TEST_AS_CURVE, provenance
from sepnet.report.plots import MAX_CLASSES
from sepnet.report.record import RunRecord

__all__ = ["kept_weights", "run_summary", "wilson_interval"]

WEAKEST, CONFUSIONS = 3, 5


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, without continuity correction), as fractions 0..1.

    It stays inside 0..1 and is right for small samples and for proportions near 0 or 1, where mean ± 2 standard errors is not.

    Raises:
        ValueError: not 0 <= correct <= images, no images, or a confidence outside (0, 1).
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(f"{correct} correct of {images} images is no proportion")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, square = correct / images, z * z / images
    centre = (p + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(p * (1 - p) / images + square / (4 * images))
    # at the two ends the interval touches 0 or 1 exactly, and rounding must not carry it past
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == images else centre + half
    return low, high


def kept_weights(record: RunRecord) -> str:
    """Which weights the run ended with, where validation chose them; empty where they are those of the last iteration."""
    if record.kept_best is None:
        return ""
    return f"weights of iteration {record.kept_best:,} of {record.iterations:,} (best on validation)"


def run_summary(record: RunRecord) -> str:
    """report.md of one run; ends in a newline. Sections without figures are left out."""
    parts = [f"# {escape(record.model)} on {escape(record.data_title)}", *_what(record), "", "## Result", "", *_result(record)]
    split = "test" if "test" in record.result else "val"
    scores = record.result.get(split, {})
    parts += _weakest(scores, split) + _confusions(scores, split)
    parts += ["", "## Cost", "", *_cost(record), "", "## How it was made", "", *provenance([record])]
    return "\n".join([*parts, ""])


def _what(record: RunRecord) -> list[str]:
    c, h, w = record.input_shape
    sizes = f"{counted(record.classes, 'class', 'classes')}, {counted(record.train_images, 'training image')}{_held_out(record)}"
    fingerprint = escape(record.data_fingerprint[:12])
    lines = [
        "",
        bullet("Data", f"{escape(record.data_title)}: {sizes}, {c} × {h} × {w} (fingerprint {fingerprint})"),
        bullet("Training", escape(_training(record))),
    ]
    return lines + [bullet("Note", escape(note)) for note in record.notes]


def _held_out(record: RunRecord) -> str:
    names = {"val": "validation", "test": "test"}
    return "".join(
        f", {counted(record.result[s]['images'], f'{n} image')}" for s, n in names.items() if "images" in record.result.get(s, {})
    )


def _training(record: RunRecord) -> str:
    config = record.config
    planned = config.get("iterations")
    length = counted(record.iterations, "iteration")
    if isinstance(planned, int) and record.iterations < planned:
        length += f" of {planned:,} planned (stopped early)"
    parts = [f"recipe {config['recipe']}"] if config.get("recipe") else []
    batch = record.batch_images
    parts.append(length if batch is None else f"{length} × {counted(batch, 'image')}")
    for key, name in (("opt", "optimiser"), ("lr", "learning rate"), ("sched", "schedule"), ("seed", "seed")):
        if config.get(key) is not None:
            parts.append(f"{name} {config[key]}")
    return ", ".join(parts)


# --- result -----------------------------------------------------------------------------------------------------------


def _result(record: RunRecord) -> list[str]:
    kept = kept_weights(record)
    lines = [bullet("Kept", kept)] if kept else []
    if "test" in record.result:
        lines += [*_scored("Test accuracy", record.result["test"]), "", _test_wording(record)]
    if "val" in record.result:
        if lines:
            lines.append("")
        lines += [*_scored("Validation accuracy", record.result["val"]), "", _validation_wording(record)]
    return lines if record.result else ["Nothing was held out: how the network does on new images was not measured."]


def _scored(name: str, scores: Mapping[str, Any]) -> list[str]:
    lines = [bullet(name, f"**{percent(scores['accuracy'])} %**{_interval(scores)}")]
    if len(scores.get("per_class", ())) > 10 and "top5" in scores:
        lines.append(bullet("Top-5", f"{percent(scores['top5'])} %"))
    if "accuracy_tta" in scores:
        tta = f"{percent(scores['accuracy_tta'])} %, the mean over each image and its mirror image, at twice the cost"
        lines.append(bullet("Apart, with test-time augmentation", tta))
    if "loss" in scores:
        lines.append(bullet("Cross-entropy", f"{scores['loss']:.4f} nat an image"))
    return lines


def _interval(scores: Mapping[str, Any]) -> str:
    images = int(scores.get("images", 0))
    if not images:
        return ""
    low, high = wilson_interval(round(scores["accuracy"] / 100 * images), images)
    return f" of {counted(images, 'image')} (95 % interval {percent(100 * low)} to {percent(100 * high)}, for the choice of images)"


def _test_wording(record: RunRecord) -> str:
    if record.evaluated_on == "test":
        return TEST_AS_CURVE
    chosen = _chosen(record)
    before = f"The validation split chose {chosen}; the" if chosen else "The"
    return f"{before} test split was used once, after training."


def _validation_wording(record: RunRecord) -> str:
    missing = "" if "test" in record.result else " There is no test split, so there is no other estimate."
    chosen = _chosen(record)
    if chosen:
        return f"This split also chose {chosen}, so its figure tends to be too high.{missing}"
    return f"This split was watched during training and chose nothing in this run.{missing}"


def _chosen(record: RunRecord) -> str:
    """What the validation split decided; empty when it decided nothing."""
    decided = []
    if record.config.get("patience") is not None:
        decided.append("when training ended")
    if record.config.get("keep") == "best":
        decided.append("which weights were kept")
    return " and ".join(decided)


# --- classes ----------------------------------------------------------------------------------------------------------


def _weakest(scores: Mapping[str, Any], split: str) -> list[str]:
    rows = [row for row in scores.get("per_class", ()) if row.get("recall") is not None]
    if all(row["recall"] == 100 for row in rows):
        return []
    rows = sorted(rows, key=lambda row: row["recall"])[:WEAKEST]
    body = [
        [str(r["class"]), percent(r["recall"], 1), percent(r["precision"], 1), percent(r["f1"], 1), f"{r['support']:,.0f}"]
        for r in rows
    ]
    table = markdown_table(["class", "recall %", "precision %", "F1 %", "images"], body)
    return ["", f"## Weakest classes ({_split_name(split)})", "", table]


def _confusions(scores: Mapping[str, Any], split: str) -> list[str]:
    too_many = len(scores.get("per_class", ())) > MAX_CLASSES
    unseen = ["", f"There is no confusion.png: it is drawn for up to {MAX_CLASSES} classes."] if too_many else []
    matrix: Sequence[Sequence[int]] = scores.get("confusion", ())
    pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    if not pairs:
        return unseen
    names = [str(row["class"]) for row in scores.get("per_class", ())] or [f"class {i}" for i in range(len(matrix))]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:CONFUSIONS]
    body = [[names[i], names[j], f"{n:,}", percent(100 * n / sum(matrix[i]), 1)] for n, i, j in pairs]
    table = markdown_table(["class", "taken for", "images", "% of its class"], body)
    return ["", f"## Most frequent confusions ({_split_name(split)})", "", table, *unseen]


def _split_name(split: str) -> str:
    return "validation" if split == "val" else split


# --- cost -------------------------------------------------------------------------------------------------------------


def _cost(record: RunRecord) -> list[str]:
    lines = [
        bullet(
            "Parameters", f"{record.params_trainable:,} trainable, {record.params_total:,} with frozen ones and running statistics"
        ),
        bullet("Multiply-accumulates", f"{human_count(record.macs)} ({record.macs:,}) an image"),
        bullet("Training time", f"{record.seconds / 60:.1f} min, evaluations along the way included{_speed(record)}"),
    ]
    return lines


def _speed(record: RunRecord) -> str:
    batch = record.batch_images
    if batch is None or record.seconds <= 0:
        return ""
    return f": {record.iterations * batch / record.seconds:,.0f} training images/s"
