"""What a search found, in the words and numbers that its table, its report and ``runs`` show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smash_base import files
from smash_export.device_search.latency import FLAGGED
from smash_export.report.page import counted
from smash_search.rank.measurement import LOWEST, NOW
from smash_search.space.limits import CostLimits

if TYPE_CHECKING:
    from smash_search.rank.ranking import Ranking
    from smash_search.space.best import SearchRecord
    from smash_search.stages.config import SearchConfig
    from smash_search.stages.picks import SearchResult


@dataclass(frozen=True)
class LatencyFinding:
    """Latency of a pick.

    Attributes:
        milliseconds: the one that its limit was held to.
        lowest_ms: fastest of the repeated measurements; None where it was not measured repeatedly.
        limit_ms: None without a limit.
        predicted: whether it comes from a table and was not measured on the device.
        flagged: how many of the repeated measurements met a busy machine.
        now_ms: what it took at last, where the machine had become slower than it was for the other networks
            of the search; ``milliseconds`` is then what it took before.
    """

    milliseconds: float
    lowest_ms: float | None
    limit_ms: float | None
    predicted: bool = False
    flagged: int = 0
    now_ms: float | None = None

    @property
    def share(self) -> float | None:
        """Share of the limit that is used."""
        return None if self.limit_ms is None else self.milliseconds / self.limit_ms

    @property
    def share_words(self) -> str:
        """``80% of the limit of 2 ms``; nothing without a limit."""
        if self.share is None:
            return ""
        percent = f"{self.share:.0%}" if self.share >= 0.01 else "under 1%"
        return f"{percent} of the limit of {self.limit_ms:g} ms"

    def words(self) -> str:
        """For people."""
        text = f"{self.milliseconds:.3g} ms"
        if self.predicted:
            text += " (predicted)"
        if self.now_ms is not None:
            text += (
                f" before the machine became slower, told by others in turns; {self.now_ms:.3g} ms since then"
            )
        elif self.lowest_ms is not None and self.lowest_ms < self.milliseconds:
            text += f", slowest of repeated measurements, fastest {self.lowest_ms:.3g} ms"
        if self.share is not None:
            text += f"; {self.share_words}"
        if self.flagged:
            text += "; the machine was busy meanwhile: measure again when it is idle"
        return text


def latency_of(
    search: SearchRecord, limit_ms: float | None, *, predicted: bool = False
) -> LatencyFinding | None:
    """Latency in the ``search`` block of a best.json; None where nothing was measured."""
    measures = search.measures
    if "latency_ms" not in measures:
        return None
    lowest = measures.get(LOWEST)
    flagged = int(measures.get(FLAGGED, 0))
    predicted = predicted and lowest is None
    return LatencyFinding(measures["latency_ms"], lowest, limit_ms, predicted, flagged, measures.get(NOW))


@dataclass(frozen=True)
class Findings:
    """Facts of a finished search.

    Attributes:
        result: Result of the search.
        latency: Latency of the pick in best.json, or None.
        picks: latency of each further pick, by its limit.
        refused: networks that were measured for it and are beyond the latency limit; None where nothing was.
        asked: Number of candidates that were asked for.
        missing: how many of them were not found.
        limited: whether there are limits, which may leave no more networks; else the strategy ends by itself.
        steps: Number of steps that the HyperNet was to be trained for.
        skipped: how many of them were left out, since a gradient was NaN or infinite.
    """

    result: SearchResult
    latency: LatencyFinding | None
    picks: dict[str, LatencyFinding]
    refused: int | None
    asked: int
    missing: int
    limited: bool
    steps: int
    skipped: int

    def headline(self) -> str:
        """What was found, and why it was trained at all."""
        pick, cost = self.result.pick, self.result.cost
        facts = [f"{pick.error:.2%} validation error after {counted(pick.epochs, 'epoch')}"]
        if self.latency is not None:
            share = f" ({self.latency.share_words})" if self.latency.share is not None else ""
            facts.append(f"{self.latency.milliseconds:.3g} ms{share}")
        facts += [counted(cost.parameters, "parameter"), counted(cost.macs, "MAC")]
        found = f"Network {pick.key} ({self.result.best.search.origin}): {', '.join(facts)}."
        return f"{found} Why it was trained: {pick.reason}."

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each fact, the most important ones first."""
        result, search, cost = self.result, self.result.best.search, self.result.cost
        rows = [
            ("architecture", f"{result.best.architecture.key}, {search.origin}"),
            ("why it was trained", result.pick.reason),
            (f"validation error after {counted(result.pick.epochs, 'epoch')}", f"{result.pick.error:.2%}"),
        ]
        if result.pick.validation_loss is not None:
            rows.append(("validation loss", f"{result.pick.validation_loss:.4f}"))
        if result.random is not None:
            rows.append(("the same for random search", f"{result.random.error:.2%}"))
        if self.latency is not None:
            rows.append(("latency", self.latency.words()))
        if search.unused is not None:
            rows.append(("why it leaves so much unused", search.unused))
        if search.hurried is not None:
            rows.append(("why not the one ahead", search.hurried))
        for label, latency in self.picks.items():
            network, unused = result.picks[label].trained, result.picks[label].best.search.unused
            words = f"{network.key}, error {network.error:.2%}, {latency.words()}"
            rows.append((f"pick within {label}", words if unused is None else f"{words}. {unused}"))
        if self.refused is not None:
            words = f"{result.candidates} within the latency limit; {self.refused} measured ones beyond it"
            rows.append(("candidates", words))
        if self.missing:
            why = "the limits leave no more networks" if self.limited else "the strategy proposed no more"
            rows.append(("not found", f"{self.missing} of {self.asked} candidates: {why}"))
        rows += [
            (
                "SMASH score (error with generated weights)",
                f"{search.score:.2%}, rank {search.rank} of {result.candidates}"
                if search.score is not None
                else "not scored: from the random search beside",
            ),
            *trust_rows(result.ranking),
            *self._skipped_rows(),
            *stage_rows(result.ranking),
            ("parameters", f"{cost.parameters:,}"),
            ("MACs", f"{cost.macs:,}"),
        ]
        return rows

    def _skipped_rows(self) -> list[tuple[str, str]]:
        """That the HyperNet was trained less than asked, where it was."""
        if not self.skipped:
            return []
        why = "their gradients were NaN or infinite, and they changed nothing"
        return [("steps of the HyperNet left out", f"{self.skipped} of {self.steps}: {why}")]


def trust_rows(ranking: Ranking) -> list[tuple[str, str]]:
    """How far the score can be trusted: its tau, the one with zeroed filters, and the op contribution."""
    trust, encoding = ranking.trust, ranking.encoding
    tau = "not measured: too few networks were scored and trained" if trust is None else trust.words()
    rows = [("Kendall's tau of score and trained error", tau)]
    if encoding is not None and (contribution := encoding.contribution_words()) is not None:
        networks = counted(encoding.architectures, "network")
        words = f"mean score of {networks} with every generated filter zero, minus that with the right ones"
        rows.append(("op contribution", f"{contribution}: {words}"))
    return rows


def stage_rows(ranking: Ranking) -> list[tuple[str, str]]:
    """The lowest error after the first rung so far, after each stage; runs of early versions have none."""
    stages = [f"{stage.name} {stage.best_so_far:.2%}" for stage in ranking.added]
    return [("best so far after the first rung", ", ".join(stages))] if stages else []


def findings(result: SearchResult, config: SearchConfig) -> Findings:
    """The facts of a search's result."""
    limits = {limit.label: limit.milliseconds for limit in config.latency_limits}
    predicted = bool(config.measured.get("predicted"))
    largest = max(limits.values(), default=None)
    latency = latency_of(result.best.search, largest, predicted=predicted)
    picks = {
        label: found
        for label, pick in result.picks.items()
        if (found := latency_of(pick.best.search, limits[label], predicted=predicted)) is not None
    }
    refused = result.ranking.refused if latency is not None else None
    missing = max(0, config.candidates - result.found)
    limited = bool(limits) or result.best.search.limit_ms is not None or config.limits != CostLimits()
    skipped = int(files.read_json(result.folder / "training.json")["skipped"])
    steps = config.training.steps
    return Findings(result, latency, picks, refused, config.candidates, missing, limited, steps, skipped)
