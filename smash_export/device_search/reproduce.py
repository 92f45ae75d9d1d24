"""``smash-export reproduce``: an experiment of the paper as numbers, a picture and a paragraph.

The numbers come from :mod:`smash_search.experiments`; this module draws them and says in words what they say.
Every sentence is generated from the result, so that it is true of a bad result too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smash_base import files
from smash_base.json_values import JsonObject
from smash_base.records import read_record
from smash_export.device_search.experiments import (
    Band,
    Capacity,
    Correlation,
    Encoding,
    Gradient,
    Head,
    Presets,
    Signal,
    SizedHyperNet,
    Transfer,
)
from smash_export.progress import SILENT, Output
from smash_search.rank.statistics import Estimate, kendall_gain, stepped_up
from smash_search.rank.trust import claim

if TYPE_CHECKING:
    from smash_search.data import Dataset


@dataclass(frozen=True)
class Reproduced:
    """What was written.

    Attributes:
        result: content of the JSON file.
        paragraph: what was found, in words.
        json, png, svg, markdown: the files.
    """

    result: JsonObject
    paragraph: str
    json: Path
    png: Path
    svg: Path
    markdown: Path


def reproduce(
    name: str,
    dataset: Dataset | str,
    folder: Path | str,
    *,
    size: str = "cpu",
    device: str = "auto",
    minutes: float | None = None,
    transfer_to: Sequence[str] = (),
    output: Output = SILENT,
) -> Reproduced:
    """Run an experiment, or go on with it, and write ``NAME.json``, ``.png``, ``.svg`` and ``.md``.

    Args:
        name: One of ``smash_search.experiments.EXPERIMENTS``.
        dataset: images of all experiments in the folder, or their name (NAME or NAME:PATH).
        folder: shared by experiments of one size and data set, which reuse each other's networks.
        size: "cpu", "edge" (today's searches, one band of cost) or "paper".
        device: where to compute.
        minutes: no further network is trained after so much time.
        transfer_to: data sets of "transfer", in place of the size's own.

    Raises:
        UsageError: no such experiment or size; or the folder belongs to another.
    """
    from smash_search.data import load_dataset
    from smash_search.experiments import run_experiment
    from smash_search.experiments.config import size_named
    from smash_search.train.compute import pick_device

    if isinstance(dataset, str):
        dataset = load_dataset(dataset)
    config, folder = size_named(size), Path(folder)
    if transfer_to:
        config = replace(config, transfer_to=tuple(transfer_to))
    result = run_experiment(
        name,
        config,
        dataset,
        folder,
        output.progress,
        device=str(pick_device(device)),
        minutes=minutes,
    )
    return write_report(result, folder)


def write_report(result: JsonObject, folder: Path) -> Reproduced:
    """Picture and paragraph of a result that ``folder/NAME.json`` holds already."""
    head, text = read_record(Head, result, "result"), paragraph(result)
    name = head.experiment
    png, svg, markdown = (folder / f"{name}.{ending}" for ending in ("png", "svg", "md"))
    draw(result, png, svg)
    heading = f"# {name}: {head.data}, {head.size} size"
    files.write_text(markdown, f"{heading}\n\n![{name}]({svg.name})\n\n{text}\n")
    return Reproduced(result, text, folder / f"{name}.json", png, svg, markdown)


# ------------------------------------------------------------------------------------------- words


def paragraph(result: JsonObject) -> str:
    """What an experiment found, in words."""
    head = read_record(Head, result, "result")
    kind, words_of, _ = _EXPERIMENTS[head.experiment]
    words = words_of(read_record(kind, result, head.experiment))
    if head.stopped_by_time:
        words += " The time limit ended the experiment early; the counts above are what it is based on."
    return words


def _correlation_words(found: Correlation) -> str:
    count = found.networks
    if not found.signals:
        return f"Only {count} networks were trained: too few for any statistic."
    rows = {row.signal: row for row in found.signals}
    score, running = rows["SMASH score"], rows["running statistics"]
    lead = (
        f"{count} random networks were scored with generated weights on {found.score_images:,} images "
        f"and trained for {found.epochs} epochs on {found.train_images:,}. Their test errors spread "
        f"from {found.error_range[0]:.1%} to {found.error_range[1]:.1%} (standard deviation "
        f"{_points(found.error_sd)})"
    )
    noise = found.seed_noise
    lead += f", {found.error_sd / noise:.1f} times the noise of a training seed. " if noise else ". "
    tau, rank = score.everything.kendall, score.everything.spearman
    text = lead + f"The SMASH score agrees with the error with Kendall's tau {_interval(tau)}"
    text += f" (Spearman {_interval(rank)}). "
    text += _zeroed_words(found, tau, rows.get("filters zeroed"))
    text += _band_words(found.band)
    ceiling = found.ceiling
    if ceiling and ceiling.value is not None:
        text += (
            f"Two training seeds of {ceiling.count} of the networks agree with tau {_interval(ceiling)}: "
            "no score can do much better than that. "
        )
    text += (
        f"Inside the top half tau is {_interval(score.top_half.kendall)}, inside the top fifth "
        f"{_interval(score.top_fifth.kendall)}; the best of the 5 best by score is "
        f"{_points(score.regret['5'])} worse than the best of all. "
        "With running BatchNorm statistics, as in the original program, tau is "
        f"{_interval(running.everything.kendall)}, and the scores have a mean of {found.running_mean:.1%} "
        f"instead of {found.score_mean:.1%}. "
    )
    others = ", ".join(
        f"{name} {_interval(rows[name].everything.kendall)}"
        for name in ("parameters", "MACs", "one epoch", "SMASH loss")
    )
    text += f"For comparison, tau of other signals: {others}. "
    whole = stepped_up(found.split_half)  # results of early versions hold one of halves that disagree
    if whole is not None:
        text += (
            f"Scores from the two halves of the images agree with Spearman {found.split_half:.2f} "
            f"({whole:.2f} for all of them, by Spearman and Brown)."
        )
    return text


def _band_words(band: Band | None) -> str:
    """What the score says among networks of like cost; results of early versions do not hold it."""
    if band is None:
        return ""
    low, high = (macs / 1e6 for macs in band.macs)
    return (
        f"Among the {band.kendall.count} of {low:.1f} to {high:.1f} million MACs tau is "
        f"{_interval(band.kendall)}, with every generated filter zero {_interval(band.zeroed)}. "
    )


def _zeroed_words(found: Correlation, tau: Estimate, zeroed: Signal | None) -> str:
    """What is left of the agreement without generated filters; results of early versions do not hold it."""
    if zeroed is None:
        return (
            "This result holds no scores with every generated filter set to zero. Without them nothing says "
            "that the agreement comes from what the HyperNet generates, and no ranking is claimed. "
        )
    without = zeroed.everything.kendall
    return (
        f"With every generated filter set to zero the mean score is {_points(found.op_contribution)} "
        f"worse, and its tau {_interval(without)}. {claim(tau, without, _gain(found))} "
    )


def _gain(found: Correlation) -> Estimate:
    """Tau of the score minus that of the score without generated filters, over the same networks."""
    points = found.points
    without = [point.zeroed for point in points if point.zeroed is not None]
    if len(without) < len(points):  # a result of an early version
        return Estimate(None, None, None, len(points))
    return kendall_gain([point.score for point in points], without, [point.error for point in points])


def _capacity_words(found: Capacity) -> str:
    parts = [
        f"{row.hypernet} ({row.parameters:,} parameters, loss {row.loss:.2f}): tau "
        f"{_interval(row.kendall)}, mean score {row.score_mean:.1%}" + _without_filters(row)
        for row in found.hypernets
    ]
    return f"Kendall's tau over {found.networks} trained networks by HyperNet: " + "; ".join(parts) + "."


def _without_filters(row: SizedHyperNet) -> str:
    """What a HyperNet's score is worth with every generated filter zero; early results do not hold it."""
    if row.kendall_zeroed is None or row.op_contribution is None:
        return ""
    return (
        f", with every generated filter zero {_interval(row.kendall_zeroed)} and "
        f"{_points(row.op_contribution)} worse"
    )


def _encoding_words(found: Encoding) -> str:
    parts = []
    for row in found.kinds:
        gap, p = row.cost.difference, row.cost.p
        value, low, high = (100 * (part or 0.0) for part in (gap.value, gap.low, gap.high))
        verdict = "worse" if p < 0.01 and value > 0 else "not reliably worse"
        parts.append(
            f"{row.c} {row.mean:.1%} ({value:+.2f} points, {low:+.2f} to {high:+.2f}; p = {p:.2g}, {verdict})"
        )
    return (
        f"Over {found.architectures} architectures the mean error with weights generated from the right "
        f"encoding is {found.right_mean:.1%}. With a corrupted one: "
        + "; ".join(parts)
        + f".{_op_contribution_words(found)} Tests are Wilcoxon's over the same architectures."
    )


def _op_contribution_words(found: Encoding) -> str:
    """What the filters themselves are worth; early results do not hold it."""
    if found.op_contribution is None or found.zeroed_mean is None:
        return ""
    gap = found.op_contribution.difference
    return (
        f" With every generated filter set to zero: {found.zeroed_mean:.1%} ({_interval(gap, 100)} points; "
        f"p = {found.op_contribution.p:.2g})."
    )


def _gradient_words(found: Gradient) -> str:
    test = found.guided_against_random
    ends = [sum(path[-1] for path in paths) / len(paths) for paths in (found.guided, found.random)]
    start = sum(found.start_errors) / len(found.start_errors)
    gap = test.difference.value or 0.0
    better = "better" if test.p < 0.05 and gap > 0 else None
    better = "worse" if test.p < 0.05 and gap < 0 else better
    verdict = f"significantly {better}" if better else "not distinguishable"
    text = (
        f"From {found.starts} starts with a mean score of {start:.1%}, {found.steps} steps of "
        f"{found.scored_per_step} scored mutations each reach {ends[0]:.1%} when dE/dc chooses the "
        f"mutations and {ends[1]:.1%} when chance does: guided is {verdict} (what "
        f"chance has more: {_interval(test.difference, 100)} points, p = {test.p:.2g})."
    )
    kendall = found.prediction_kendall
    if kendall and kendall.value is not None:
        text += (
            f" Over {found.predictions} mutations whose effect dE/dc predicts, the predicted and the "
            f"real change of the score agree with tau {_interval(kendall)}."
        )
    return text


def _transfer_words(found: Transfer) -> str:
    parts = []
    for target in found.targets:
        means = "; ".join(f"{name} {value:.1%}" for name, value in target.means.items() if value is not None)
        text = f"on {target.data}, mean errors of the groups are: {means}"
        if target.kendall and target.kendall.value is not None:
            text += f" (tau between the errors on both data sets: {_interval(target.kendall)})"
        parts.append(text)
    return (
        f"The {found.picks} best of {found.networks} networks by {found.chosen_by} on {found.source}, the "
        f"{found.picks} best by score and {found.picks} others were trained on other data: "
        + "; ".join(parts)
        + "."
    )


def _presets_words(found: Presets) -> str:
    if not found.patterns:
        return "No pattern was trained within the time."
    parts = []
    for row in found.patterns:
        text = (
            f"{row.name} ({row.macs:,} MACs) has an error of {row.error:.1%}, better than "
            f"{row.beats_by_error:.0%} of the random networks"
        )
        if row.beats_alike is not None:
            text += f" and than {row.beats_alike:.0%} of the {row.alike} with half to twice its MACs"
        parts.append(text + f"; by score it is better than {row.beats_by_score:.0%}")
    return f"Against {found.networks} random networks, trained equally: " + ". ".join(parts) + "."


def _interval(estimate: Estimate, factor: float = 1.0) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None:
        return "undefined"
    if low is None or high is None:
        return f"{value * factor:.2f}"
    return f"{value * factor:.2f} ({low * factor:.2f} to {high * factor:.2f})"


def _points(share: float) -> str:
    return f"{share * 100:.1f} points"


# ---------------------------------------------------------------------------------------- pictures


def draw(result: JsonObject, png: Path, svg: Path) -> None:
    """The picture of an experiment, as PNG and SVG; the same result gives the same bytes."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    name = read_record(Head, result, "result").experiment
    kind, _, picture = _EXPERIMENTS[name]
    picture(axes, read_record(kind, result, name))
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "smash-export"}):
        for path, options in ((png, {"dpi": 144}), (svg, {"metadata": {"Date": None}})):
            stream = io.BytesIO()
            figure.savefig(stream, format=path.suffix[1:], **options)
            files.write_bytes(path, stream.getvalue())


def _draw_correlation(axes: Any, found: Correlation) -> None:
    points = found.points
    for name, label, marker in (("score", "recomputed", "o"), ("running", "running", "x")):
        axes.scatter(
            [100 * getattr(point, name) for point in points],
            [100 * point.error for point in points],
            marker=marker,
            s=22,
            alpha=0.8,
            label=f"{label} statistics",
        )
    if points:
        axes.legend(frameon=False)
    axes.set(xlabel="SMASH score: error with generated weights, %", ylabel="error after training, %")
    axes.set_title(f"{found.networks} random networks, {found.data}")


def _draw_capacity(axes: Any, found: Capacity) -> None:
    rows = found.hypernets
    values = [row.kendall.value or 0.0 for row in rows]
    lows = [row.kendall.low for row in rows]
    highs = [row.kendall.high for row in rows]
    below = [value - (value if low is None else low) for value, low in zip(values, lows, strict=True)]
    above = [(value if high is None else high) - value for value, high in zip(values, highs, strict=True)]
    ranges = [[max(0.0, length) for length in side] for side in (below, above)]
    axes.errorbar([row.parameters for row in rows], values, yerr=ranges, fmt="o", capsize=4)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="parameters of the HyperNet", ylabel="Kendall's tau of score and error", xscale="log")


def _draw_encoding(axes: Any, found: Encoding) -> None:
    names = ["right", *(row.c for row in found.kinds)]
    axes.boxplot([[100 * value for value in found.errors[name]] for name in names])
    axes.set_xticks(range(1, len(names) + 1), names, fontsize=8)
    axes.set(ylabel="error with generated weights, %")


def _draw_gradient(axes: Any, found: Gradient) -> None:
    for name, colour, label in (("guided", "C0", "guided by dE/dc"), ("random", "C1", "random")):
        paths = getattr(found, name)
        for path in paths:
            axes.plot([100 * value for value in path], color=colour, alpha=0.25, linewidth=0.8)
        mean = [100 * sum(values) / len(values) for values in zip(*paths, strict=True)]
        axes.plot(mean, color=colour, linewidth=2, label=label)
    axes.set(xlabel="step", ylabel="best score so far, % error")
    axes.legend(frameon=False)


def _draw_transfer(axes: Any, found: Transfer) -> None:
    markers = ("o", "s", "^", "D")
    for target, marker in zip(found.targets, markers * len(found.targets), strict=False):
        for colour, (name, rows) in enumerate(target.groups.items()):
            axes.scatter(
                [100 * row.error for row in rows],
                [100 * sum(row.errors) / len(row.errors) for row in rows],
                marker=marker,
                color=f"C{colour}",
                label=f"{target.data}: {name}",
            )
    axes.set(xlabel=f"error on {found.source}, %", ylabel="error on the other data, %")
    axes.legend(frameon=False, fontsize=8)


def _draw_presets(axes: Any, found: Presets) -> None:
    axes.scatter(
        found.random_macs,
        [100 * value for value in found.random_errors],
        s=18,
        color="lightgrey",
        label="random",
    )
    for number, row in enumerate(found.patterns):
        axes.scatter(row.macs, 100 * row.error, s=45, color=f"C{number}", label=row.name)
    axes.set(xlabel="MACs", ylabel="error after training, %", xscale="log")
    axes.legend(frameon=False, fontsize=8)


# name -> type of the result, its words, its picture
_EXPERIMENTS: dict[str, tuple[type, Callable[[Any], str], Callable[[Any, Any], None]]] = {
    "correlation": (Correlation, _correlation_words, _draw_correlation),
    "capacity": (Capacity, _capacity_words, _draw_capacity),
    "encoding": (Encoding, _encoding_words, _draw_encoding),
    "gradient": (Gradient, _gradient_words, _draw_gradient),
    "transfer": (Transfer, _transfer_words, _draw_transfer),
    "presets": (Presets, _presets_words, _draw_presets),
}
