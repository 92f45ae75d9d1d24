"""Scores of all candidates, their race over more and more images, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smash_base import files
from smash_base.errors import GateError, InvalidInputError
from smash_search.rank.evaluation import Evaluator
from smash_search.rank.ranking import RANKING, EncodingCheck, RaceStage, Ranking, read_ranking
from smash_search.rank.scoring import Score, Scorer, corrupted, kept_best, split_half, survivors
from smash_search.rank.trained import Trained
from smash_search.rank.trust import stages_of, trust
from smash_search.stages.config import Run
from smash_search.strategies import Candidate, Scored, Strategy

LEAST_TRUSTED = 8  # trained networks that say something of the score
ENCODING_CHECKS = 12  # architectures whose weights are also generated from a corrupted c


def score_all(run: Run, strategy: Strategy, evaluator: Evaluator) -> list[Scored]:
    """Every candidate on as many images as the strategy asks for; one entry per architecture."""
    results: dict[str, Scored] = {}
    shown: set[str] = set()
    best = math.inf
    with run.progress("candidates", run.config.candidates) as advance:

        def on_score(score: Score) -> None:
            nonlocal best
            best = min(best, score.error)
            advance(int(score.key not in shown), best=f"{best:.2%}")
            shown.add(score.key)

        while candidates := _asked(strategy, found=len(results)):
            batch = evaluator.evaluate(candidates, on_score)
            strategy.tell(batch)
            results |= {entry.candidate.architecture.key: entry for entry in batch}
            advance(len(results.keys() - shown))  # refused, or read back
            shown |= results.keys()
    return list(results.values())


def _asked(strategy: Strategy, *, found: int) -> Sequence[Candidate]:
    """The next candidates; none where the limits leave no more than the ``found`` ones."""
    try:
        return strategy.ask()
    except GateError:
        if not found:
            raise
        return ()


def race_of_scores(
    run: Run, scored: list[Scored], scorer: Scorer, evaluator: Evaluator
) -> tuple[list[Scored], Ranking]:
    """Further stages for the better part; and how far the scores can be trusted."""
    latest = {entry.score.key: entry for entry in scored if entry.score is not None}
    if not latest:
        raise InvalidInputError(
            "no candidate is within the measured limits",
            expected="at least one",
            received="; ".join(sorted({entry.refused or "" for entry in scored})[:3]),
        )
    entered = [
        key
        for key, entry in latest.items()
        if entry.score is not None and entry.score.images == scorer.stages[0]
    ]
    stages: list[RaceStage] = []
    keep = run.config.scoring.keep
    for number, images in enumerate(scorer.stages):
        if number:
            with run.progress(f"race, {images} images", len(entered)) as advance:
                wanted = [(latest[key].candidate, images) for key in entered]
                evaluator.score(wanted, lambda _: advance(1))
            latest |= {key: replace(latest[key], score=evaluator.scores[key, images]) for key in entered}
        scores = [score for key in entered if (score := latest[key].score) is not None]
        stage = RaceStage(images, len(entered), split_half(scores))
        if number + 1 < len(scorer.stages):
            entered = [score.key for score in survivors(scores, keep)]
            sure = kept_best(scores, keep, run.config.seed)
            stage = replace(stage, kept_best=sure, kept=len(entered))
        stages.append(stage)
    ranking = Ranking(tuple(stages), _encoding_check(run, latest, scorer))
    ordered = [latest[entry.score.key] if entry.score is not None else entry for entry in scored]
    return ordered, ranking


def _encoding_check(run: Run, latest: dict[str, Scored], scorer: Scorer) -> EncodingCheck | None:
    """Mean error with the right c, with a corrupted one, and with all generated filters set to zero.

    The second one says whether the HyperNet reads c; the third one is *op contribution*: whether what it
    generates is used at all.
    """
    path = run.folder / RANKING
    if path.exists():
        return read_ranking(path).encoding
    chosen = [latest[key].candidate.architecture for key in sorted(latest)]
    chosen = [entry for entry in chosen if scorer.supernet.hypernet.layout.tiles(entry)]
    images = scorer.stages[0]
    rows = []
    for architecture in chosen[:ENCODING_CHECKS]:
        right = scorer.score(architecture, images).error
        shuffled = scorer.score(architecture, images, corrupt=corrupted).error
        rows.append((right, shuffled, scorer.score(architecture, images, zeroed=True).error))
    if not rows:
        return None
    errors = np.asarray(rows)
    right, shuffled, zeroed = (float(value) for value in errors.mean(0))
    deviation = float((errors[:, 2] - errors[:, 0]).std(ddof=1)) if len(rows) > 1 else 0.0
    return EncodingCheck(len(rows), right, shuffled, zeroed, zeroed - right, deviation / math.sqrt(len(rows)))


def completed(
    run: Run,
    ranking: Ranking,
    scored: list[Scored],
    trained: list[Trained],
    scorer: Scorer,
    refused: int | None,
) -> Ranking:
    """Complete ranking.json by what the trained networks say of the score, and of what each stage added.

    Args:
        run, ranking, scored, trained, scorer: what the search has.
        refused: Networks that were measured and are beyond the limits; None where nothing was measured.
    """
    path = run.folder / RANKING
    if path.exists():
        return read_ranking(path)
    by_key = {entry.candidate.architecture.key: entry for entry in scored}
    first = [entry for entry in trained if entry.rung == 0 and entry.diverged is None]
    images = scorer.stages[0]
    right, zeroed = [], []
    for entry in first:
        architecture = by_key[entry.key].candidate.architecture
        right.append(scorer.score(architecture, images).error)
        zeroed.append(scorer.score(architecture, images, zeroed=True).error)
    errors = [entry.error for entry in first]
    ranking = replace(
        ranking,
        trust=trust(right, zeroed, errors) if len(first) >= LEAST_TRUSTED else None,
        added=tuple(stages_of(trained)),
        refused=refused,
    )
    files.write_json(path, ranking.to_json())
    return ranking
