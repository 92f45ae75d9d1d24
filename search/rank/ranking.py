"""``ranking.json``: how far the scores of a search can be trusted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from smash_base import files
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_search.rank.trust import Stage, Trust

RANKING = "ranking.json"  # in the folder of a search


@dataclass(frozen=True)
class RaceStage:
    """One stage of the race.

    Attributes:
        images: Validation images of each score.
        entered: Number of networks.
        split_half: Reliability of the ranking (:func:`smash_search.rank.statistics.split_half`).
        kept_best: How surely the stage kept its best network, 0 to 1; None in the last stage.
        kept: Number of networks that went on; None in the last stage.
    """

    images: int
    entered: int
    split_half: float | None
    kept_best: float | None = None
    kept: int | None = None


@dataclass(frozen=True)
class EncodingCheck:
    """Mean errors of the same networks with right and with wrong weights.

    Attributes:
        architectures: Number of networks.
        error: With the weights of their own description c.
        error_corrupted: With those of c with shuffled columns; equal where the HyperNet does not read c.
        error_zeroed: With every generated filter zero. This and the rest is None in runs of early versions.
        op_contribution: What the generated filters are worth: ``error_zeroed - error``.
        op_contribution_se: Its standard error.
    """

    architectures: int
    error: float
    error_corrupted: float
    error_zeroed: float | None = None
    op_contribution: float | None = None
    op_contribution_se: float | None = None

    def contribution_words(self) -> str | None:
        """The op contribution in points, with its standard error."""
        if self.op_contribution is None:
            return None
        error = 100 * (self.op_contribution_se or 0.0)
        return f"{100 * self.op_contribution:.1f} points (standard error {error:.1f})"


@dataclass(frozen=True)
class Ranking:
    """Content of ranking.json.

    Attributes:
        stages: Stages of the race, the first one first.
        encoding: Whether the HyperNet reads descriptions; None where no network could be checked.
        trust: Agreement of score and training; None for too few trained networks.
        added: What each stage of the search added; empty in runs of earlier versions.
        refused: Networks that were measured to be proposed and are beyond the limits, so have no score; None
            where nothing was measured.
    """

    stages: tuple[RaceStage, ...]
    encoding: EncodingCheck | None
    trust: Trust | None = None
    added: tuple[Stage, ...] = ()
    refused: int | None = None

    def to_json(self) -> JsonObject:
        """The document as :func:`read_ranking` takes it."""
        return {
            "stages": [
                {name: value for name, value in asdict(stage).items() if _is_written(name, value)}
                for stage in self.stages
            ],
            "encoding": None if self.encoding is None else asdict(self.encoding),
            "trust": None if self.trust is None else asdict(self.trust),
            "added": [asdict(stage) for stage in self.added],
            "refused": self.refused,
        }


def _is_written(name: str, value: object) -> bool:
    return value is not None or name == "split_half"


def read_ranking(path: Path) -> Ranking:
    """Read ranking.json; raises InvalidInputError naming the file and the field."""
    return read_record(Ranking, files.read_json(path), str(path))
