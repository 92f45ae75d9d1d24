"""The paper's fifth experiment: the best architectures of one data set, trained on others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from smash_base.errors import UsageError
from smash_base.json_values import JsonObject
from smash_search.data.spec import parse_spec
from smash_search.experiments.workbench import TestErrors, Workbench
from smash_search.rank import statistics
from smash_search.space.architecture import Architecture

CHOSEN_BY = "validation error"  # in the results, since those of earlier versions were chosen by test errors


@dataclass(frozen=True)
class Transferred:
    """One network on another data set.

    Attributes:
        key: Key of the architecture.
        validation: Validation error on the data set that it was chosen on.
        error: Test error on that data set.
        errors: Test errors on the other one, by training seed.
    """

    key: str
    validation: float
    error: float
    errors: list[float]


def transfer(bench: Workbench) -> JsonObject:
    """Train the best by validation error on this data set, the best by score, and random ones on the others.

    Raises:
        UsageError: networks of the folder were trained by a version that did not record validation errors.
    """
    population = [(architecture, record, _validation(record)) for architecture, record in bench.population()]
    picks = min(bench.config.picks, max(1, len(population) // 3))
    by_error = sorted(population, key=lambda entry: entry[2])
    bench.scores_of(architecture for architecture, *_ in population)
    by_score = sorted(population, key=lambda entry: bench.score(entry[0]).error)
    taken = {entry[0].key for entry in (*by_error[:picks], *by_score[:picks])}
    others = [entry for entry in population if entry[0].key not in taken]
    groups = {
        "best trained": by_error[:picks],
        "best score": by_score[:picks],
        "random": others[:picks],
    }
    results = []
    for spec in bench.config.transfer_to:
        rows: dict[str, list[Transferred]] = {name: [] for name in groups}
        with bench.progress(f"training on {spec}", 3 * picks) as advance:
            for name, entries in groups.items():
                for architecture, record, validation in entries:
                    errors = _errors(bench, spec, architecture)
                    if errors:
                        rows[name].append(Transferred(architecture.key, validation, record.error, errors))
                    advance(1)
        plain = {name: [asdict(row) for row in group] for name, group in rows.items()}
        results.append({"data": parse_spec(spec).name, "groups": plain, **_compare(rows)})
    return {
        "networks": len(population),
        "picks": picks,
        "chosen_by": CHOSEN_BY,
        "source": bench.dataset.name,
        "targets": results,
    }


def _validation(record: TestErrors) -> float:
    """What a network may be chosen by: the test images only say what came of it."""
    if record.validation is None:
        raise UsageError(
            "networks of this folder were trained by an earlier version, without their validation errors",
            hint="Choose another folder with --out.",
        )
    return record.validation


def _errors(bench: Workbench, spec: str, architecture: Architecture) -> list[float]:
    """Errors of two training seeds, as far as time allows."""
    records = [bench.trained_on(spec, architecture, seed) for seed in (0, 1)]
    return [record.error for record in records if record is not None]


def _compare(rows: dict[str, list[Transferred]]) -> JsonObject:
    unique = {row.key: row for group in rows.values() for row in group}
    source = [row.error for row in unique.values()]
    target = [float(np.mean(row.errors)) for row in unique.values()]
    return {
        "means": {
            name: float(np.mean([np.mean(row.errors) for row in group])) if group else None
            for name, group in rows.items()
        },
        "kendall": statistics.kendall(source, target).to_json() if len(source) > 2 else None,
    }
