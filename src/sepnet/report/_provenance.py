"""Where figures come from, in lines for people: hardware, versions, dates and commands of one or many runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from sepnet.report._markdown import bullet, code_span, counted, escape
from sepnet.report.record import Environment, RunRecord

__all__ = ["TEST_AS_CURVE", "Measured", "distinct", "provenance", "test_use"]


class Measured(Protocol):
    """Figures with their origin: a run's record, or the result of a benchmark."""

    @property
    def environment(self) -> Environment:
        """Versions and hardware."""
        ...

    @property
    def command(self) -> str:
        """What was typed."""
        ...

    @property
    def finished(self) -> str:
        """When: UTC, ISO 8601."""
        ...


TEST_AS_CURVE = (
    "The test split was scored along the way for the curve only; the accuracy is that of the last iteration. "
    "No choice was made on it."
)
TEST_ONCE = "The test split was used once, after training. No choice was made on it."


def distinct(values: Iterable[str]) -> list[str]:
    """The values without repetition, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def provenance(runs: Sequence[Measured], command: str | None = None) -> list[str]:
    """Lines of a Markdown list: hardware, execution, versions, command, dates. No lines without runs.

    Args:
        command: what makes the report; None: the commands of the runs.
    """
    if not runs:
        return []
    environments = [run.environment for run in runs]
    commands = [command] if command else distinct(run.command for run in runs)
    shown = [code_span(c) for c in commands[:3]] + ([f"and {len(commands) - 3} more"] if len(commands) > 3 else [])
    days = sorted(run.finished[:10] for run in runs)
    return [
        bullet("Hardware", _joined(_hardware(e) for e in environments)),
        bullet("Execution", _joined(_execution(e) for e in environments)),
        bullet("Versions", _joined(_versions(environments))),
        bullet("Command", "; ".join(shown)),
        bullet("Finished", escape(days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}") + " (UTC)"),
    ]


def test_use(runs: Sequence[RunRecord]) -> list[str]:
    """What the test split was used for in these runs, one sentence a use."""
    tested = [run for run in runs if "test" in run.result]
    return distinct(TEST_AS_CURVE if run.evaluated_on == "test" else TEST_ONCE for run in tested)


def _joined(values: Iterable[str]) -> str:
    return "; or ".join(escape(value) for value in distinct(values))


def _hardware(e: Environment) -> str:
    memory = f", {e.memory_gib:g} GiB" if e.memory_gib is not None else ""
    host = f"{e.processor}, {counted(e.cores, 'core')}{memory}"
    return f"{host} (no accelerator)" if e.device == "cpu" else f"{e.device}; host {host}"


def _execution(e: Environment) -> str:
    return (
        f"{counted(e.processes, 'process', 'processes')}, {counted(e.threads, 'thread')} each, {e.precision}, kernels: {e.kernels}"
    )


def _versions(environments: Iterable[Environment]) -> list[str]:
    """What the runs were made with; those that differ in the commit alone stand together."""
    commits: dict[tuple[str, str], list[str]] = {}
    for e in environments:
        packages = "".join(f", {name} {version}" for name, version in e.packages.items())
        rest = f", Python {e.python}, torch {e.torch}{packages}, {e.platform}"
        commits.setdefault((f"sepnet {e.sepnet}", rest), []).append(e.commit or "")
    return [f"{sepnet}{_commits(distinct(c for c in found if c))}{rest}" for (sepnet, rest), found in commits.items()]


def _commits(names: Sequence[str]) -> str:
    return f" (commit{'s' if len(names) > 1 else ''} {', '.join(names)})" if names else ""
