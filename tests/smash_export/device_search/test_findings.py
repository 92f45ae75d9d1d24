"""Latency in the words of tables: one figure, its spread, its share of the limit, and how far to trust it."""

from __future__ import annotations

from smash_export.device_search.findings import latency_of
from smash_export.device_search.latency import FLAGGED, LOWEST
from smash_search.space.best import SearchRecord


def test_a_confirmed_latency_says_spread_share_and_a_busy_machine() -> None:
    found = latency_of(SearchRecord(measures={"latency_ms": 1.5, LOWEST: 1.2, FLAGGED: 2.0}), 2.0)
    assert found is not None
    assert found.share == 0.75
    words = found.words()
    assert words.startswith("1.5 ms, slowest of repeated measurements, fastest 1.2 ms")
    assert "75% of the limit of 2 ms" in words
    assert "busy" in words


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
