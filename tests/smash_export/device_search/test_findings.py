"""What the table of a search says: latency, its spread and share of the limit, and how far to trust it."""

from __future__ import annotations

import html
import json
from dataclasses import replace

import pytest

from smash_export.device_search.findings import findings, latency_of, trust_rows
from smash_export.device_search.latency import FLAGGED
from smash_export.report.search import search_page
from smash_search.rank.finalists import FinalistsConfig
from smash_search.rank.measurement import LOWEST, NOW
from smash_search.space.best import SearchRecord
from smash_search.stages.picks import SearchResult
from smash_search.train.recipes import Recipe
from tests.search.run_small_search import config, search


def test_a_confirmed_latency_says_spread_share_and_a_busy_machine() -> None:
    found = latency_of(SearchRecord(measures={"latency_ms": 1.5, LOWEST: 1.2, FLAGGED: 2.0}), 2.0)
    assert found is not None
    assert found.share == 0.75
    words = found.words()
    assert words.startswith("1.5 ms, slowest of repeated measurements, fastest 1.2 ms")
    assert "75% of the limit of 2 ms" in words
    assert "busy" in words


def test_a_latency_before_the_machine_became_slower_is_told_beside_the_one_since_then() -> None:
    found = latency_of(SearchRecord(measures={"latency_ms": 1.5, LOWEST: 1.4, NOW: 2.1}), 2.0)
    assert found is not None
    words = "1.5 ms before the machine became slower, told by others in turns; 2.1 ms since then; "
    assert found.words() == words + "75% of the limit of 2 ms"


def test_what_is_hardly_used_is_not_rounded_to_nothing() -> None:
    found = latency_of(SearchRecord(measures={"latency_ms": 0.01}), 500.0)
    assert found is not None
    assert found.words() == "0.01 ms; under 1% of the limit of 500 ms"


def test_a_prediction_is_called_one_until_the_device_has_measured_it() -> None:
    table = latency_of(SearchRecord(measures={"latency_ms": 1.5}), None, predicted=True)
    assert table is not None
    assert table.words() == "1.5 ms (predicted)"
    measured = latency_of(
        SearchRecord(measures={"latency_ms": 1.5, LOWEST: 1.5, FLAGGED: 0.0}), None, predicted=True
    )
    assert measured is not None
    assert measured.words() == "1.5 ms"
    assert latency_of(SearchRecord(), 2.0) is None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search that trains as many networks as it takes to say something of the score."""
    finalists = FinalistsConfig(count=8, rungs=(1,), random=1, baseline="none", recipe=Recipe(batch=32))
    return search(tmp_path_factory.mktemp("runs") / "run", candidates=10, finalists=finalists)


def test_a_search_says_its_tau_that_with_zeroed_filters_and_the_op_contribution(result: SearchResult) -> None:
    trust, encoding = result.ranking.trust, result.ranking.encoding
    assert trust is not None
    assert encoding is not None
    assert trust.networks == 8
    rows = dict(findings(result, config()).rows())
    told = rows["Kendall's tau of score and trained error"]
    assert "over 8 networks; with every generated filter zero: " in told
    assert told.endswith(trust.claim)
    assert f"{100 * (encoding.op_contribution or 0):.1f} points (standard error" in rows["op contribution"]
    page = search_page(result, "search", headline="", facts=[])
    assert html.escape(f"Kendall's tau of score and error after the first rung: {told}") in page
    assert f"op contribution {100 * (encoding.op_contribution or 0):.1f} points" in page


def test_a_search_says_what_each_stage_added_and_what_the_score_chose(result: SearchResult) -> None:
    by_name = {stage.name: stage for stage in result.ranking.added}
    assert [(name, stage.trained) for name, stage in by_name.items()] == [
        ("drawn by lot", 1),
        ("chosen by score", 7),
    ]
    best = min(entry.error for entry in result.trained)
    told = dict(findings(result, config()).rows())["best so far after the first rung"]
    assert told == f"drawn by lot {by_name['drawn by lot'].best:.2%}, chosen by score {best:.2%}"
    page = search_page(result, "search", headline="", facts=[])
    assert "that the HyperNet&#x27;s score chose: 7, with a mean error of" in page


def test_the_pick_is_marked_among_the_finalists_whoever_proposed_it(result: SearchResult) -> None:
    marked = f'<tr class="chosen"><td class="short">{result.pick.key}</td><td class="short">'
    assert f"{marked}search<" in search_page(result, "search", headline="", facts=[])
    drawn = replace(result.pick, group="random")
    trained = [
        replace(entry, group="random" if entry.key == drawn.key else "search") for entry in result.trained
    ]
    other = replace(result, pick=drawn, trained=trained)
    assert f"{marked}random<" in search_page(other, "search", headline="", facts=[])


def test_a_search_says_how_many_steps_of_its_hypernet_changed_nothing(result: SearchResult) -> None:
    assert "steps of the HyperNet left out" not in dict(findings(result, config()).rows())
    file = result.folder / "training.json"
    training = json.loads(file.read_text())
    try:
        file.write_text(json.dumps({**training, "skipped": 2}))
        told = dict(findings(result, config()).rows())["steps of the HyperNet left out"]
    finally:
        file.write_text(json.dumps(training))
    steps = config().training.steps
    assert told == f"2 of {steps}: their gradients were NaN or infinite, and they changed nothing"


def test_a_search_of_few_networks_says_that_its_score_was_not_judged(result: SearchResult) -> None:
    assert dict(trust_rows(replace(result.ranking, trust=None)))[
        "Kendall's tau of score and trained error"
    ].startswith("not measured: too few")
    assert [name for name, _ in trust_rows(replace(result.ranking, encoding=None))] == [
        "Kendall's tau of score and trained error"
    ]
