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
from smash_export.progress import SILENT, Output

if TYPE_CHECKING:
    from smash_search.data import Dataset

Result = dict[str, Any]


@dataclass(frozen=True)
class Reproduced:
    """What was written.

    Attributes:
        result: content of the JSON file.
        paragraph: what was found, in words.
        json, png, svg, markdown: the files.
    """

    result: Result
    paragraph: str
    json: Path
    png: Path
    svg: Path
    markdown: Path


def reproduce(
    name: str,
    dataset: Dataset | str,
    folder: Path,
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
    config = size_named(size)
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


def write_report(result: Result, folder: Path) -> Reproduced:
    """Picture and paragraph of a result that ``folder/NAME.json`` holds already."""
    name = result["experiment"]
    text = paragraph(result)
    png, svg, markdown = (folder / f"{name}.{ending}" for ending in ("png", "svg", "md"))
    draw(result, png, svg)
    heading = f"# {name}: {result['data']}, {result['size']} size"
    files.write_text(markdown, f"{heading}\n\n![{name}]({svg.name})\n\n{text}\n")
    return Reproduced(result, text, folder / f"{name}.json", png, svg, markdown)


# ------------------------------------------------------------------------------------------- words


def paragraph(result: Result) -> str:
    """What an experiment found, in words."""
    words = _WORDS[result["experiment"]](result)
    if result.get("stopped_by_time"):
        words += " The time limit ended the experiment early; the counts above are what it is based on."
    return words


def _correlation_words(result: Result) -> str:
    count = result["networks"]
    if not result["signals"]:
        return f"Only {count} networks were trained: too few for any statistic."
    rows = {row["signal"]: row for row in result["signals"]}
    score, running = rows["SMASH score"], rows["running statistics"]
    lead = (
        f"{count} random networks were scored with generated weights on {result['score_images']:,} images "
        f"and trained for {result['epochs']} epochs on {result['train_images']:,}. Their test errors spread "
        f"from {result['error_range'][0]:.1%} to {result['error_range'][1]:.1%} (standard deviation "
        f"{_points(result['error_sd'])})"
    )
    noise = result["seed_noise"]
    lead += f", {result['error_sd'] / noise:.1f} times the noise of a training seed. " if noise else ". "
    text = lead + f"The SMASH score agrees with the error with Kendall's tau {_estimate(score['all'])}"
    text += f" (Spearman {_estimate(score['all'], 'spearman')}). "
    if "filters zeroed" in rows:
        text += (
            f"With every generated filter set to zero the mean score is {_points(result['op_contribution'])} "
            f"worse, and its tau {_estimate(rows['filters zeroed']['all'])}. "
        )
    ceiling = result["ceiling"]
    if ceiling and ceiling["value"] is not None:
        text += (
            f"Two training seeds of {ceiling['count']} of the networks agree with tau {_interval(ceiling)}: "
            "no score can do much better than that. "
        )
    text += (
        f"Inside the top half tau is {_estimate(score['top half'])}, inside the top fifth "
        f"{_estimate(score['top fifth'])}; the best of the 5 best by score is "
        f"{_points(score['regret']['5'])} worse than the best of all. "
        f"With running BatchNorm statistics, as in the original program, tau is {_estimate(running['all'])}, "
        f"and the scores have a mean of {result['running_mean']:.1%} instead of {result['score_mean']:.1%}. "
    )
    others = ", ".join(
        f"{name} {_estimate(rows[name]['all'])}" for name in ("parameters", "MACs", "one epoch", "SMASH loss")
    )
    text += f"For comparison, tau of other signals: {others}. "
    half = result["split_half"]
    if half is not None:
        text += (
            f"Scores from the two halves of the images agree with Spearman {half:.2f} "
            f"({result['split_half_stepped_up']:.2f} for all of them, by Spearman and Brown)."
        )
    return text


def _capacity_words(result: Result) -> str:
    parts = [
        f"{row['hypernet']} ({row['parameters']:,} parameters, loss {row['loss']:.2f}): tau "
        f"{_interval(row['kendall'])}, mean score {row['score_mean']:.1%}"
        for row in result["hypernets"]
    ]
    return f"Kendall's tau over {result['networks']} trained networks by HyperNet: " + "; ".join(parts) + "."


def _encoding_words(result: Result) -> str:
    parts = []
    for row in result["kinds"]:
        cost = row["cost"]
        low, high = cost["difference"]["low"], cost["difference"]["high"]
        verdict = "worse" if cost["p"] < 0.01 and cost["difference"]["value"] > 0 else "not reliably worse"
        parts.append(
            f"{row['c']} {row['mean']:.1%} ({cost['difference']['value'] * 100:+.2f} points, "
            f"{low * 100:+.2f} to {high * 100:+.2f}; p = {cost['p']:.2g}, {verdict})"
        )
    return (
        f"Over {result['architectures']} architectures the mean error with weights generated from the right "
        f"encoding is {result['right_mean']:.1%}. With a corrupted one: " + "; ".join(parts) + ". Tests are "
        "Wilcoxon's over the same architectures."
    )


def _gradient_words(result: Result) -> str:
    test = result["guided_against_random"]
    ends = [sum(path[-1] for path in paths) / len(paths) for paths in (result["guided"], result["random"])]
    start = sum(result["start_errors"]) / len(result["start_errors"])
    gap = test["difference"]
    better = "better" if test["p"] < 0.05 and gap["value"] > 0 else None
    better = "worse" if test["p"] < 0.05 and gap["value"] < 0 else better
    verdict = f"significantly {better}" if better else "not distinguishable"
    text = (
        f"From {result['starts']} starts with a mean score of {start:.1%}, {result['steps']} steps of "
        f"{result['scored_per_step']} scored mutations each reach {ends[0]:.1%} when dE/dc chooses the "
        f"mutations and {ends[1]:.1%} when chance does: guided is {verdict} (what "
        f"chance has more: {_interval(gap, 100)} points, p = {test['p']:.2g})."
    )
    kendall = result["prediction_kendall"]
    if kendall and kendall["value"] is not None:
        text += (
            f" Over {result['predictions']} mutations whose effect dE/dc predicts, the predicted and the "
            f"real change of the score agree with tau {_interval(kendall)}."
        )
    return text


def _transfer_words(result: Result) -> str:
    parts = []
    for target in result["targets"]:
        means = "; ".join(
            f"{name} {value:.1%}" for name, value in target["means"].items() if value is not None
        )
        text = f"on {target['data']}, mean errors of the groups are: {means}"
        if target["kendall"] and target["kendall"]["value"] is not None:
            text += f" (tau between the errors on both data sets: {_interval(target['kendall'])})"
        parts.append(text)
    return (
        f"The {result['picks']} best of {result['networks']} networks by error on {result['source']}, the "
        f"{result['picks']} best by score and {result['picks']} others were trained on other data: "
        + "; ".join(parts)
        + "."
    )


def _presets_words(result: Result) -> str:
    if not result["patterns"]:
        return "No pattern was trained within the time."
    parts = []
    for row in result["patterns"]:
        text = (
            f"{row['name']} ({row['macs']:,} MACs) has an error of {row['error']:.1%}, better than "
            f"{row['beats_by_error']:.0%} of the random networks"
        )
        if row["beats_alike"] is not None:
            text += f" and than {row['beats_alike']:.0%} of the {row['alike']} with half to twice its MACs"
        parts.append(text + f"; by score it is better than {row['beats_by_score']:.0%}")
    return f"Against {result['networks']} random networks, trained equally: " + ". ".join(parts) + "."


_WORDS: dict[str, Callable[[Result], str]] = {
    "correlation": _correlation_words,
    "capacity": _capacity_words,
    "encoding": _encoding_words,
    "gradient": _gradient_words,
    "transfer": _transfer_words,
    "presets": _presets_words,
}


def _estimate(part: dict[str, Any], kind: str = "kendall") -> str:
    return _interval(part[kind])


def _interval(estimate: dict[str, Any], factor: float = 1.0) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    if low is None:
        return f"{value * factor:.2f}"
    return f"{value * factor:.2f} ({low * factor:.2f} to {high * factor:.2f})"


def _points(share: float) -> str:
    return f"{share * 100:.1f} points"


# ---------------------------------------------------------------------------------------- pictures


def draw(result: Result, png: Path, svg: Path) -> None:
    """The picture of an experiment, as PNG and SVG; the same result gives the same bytes."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    _PICTURES[result["experiment"]](axes, result)
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "smash-export"}):
        for path, options in ((png, {"dpi": 144}), (svg, {"metadata": {"Date": None}})):
            stream = io.BytesIO()
            figure.savefig(stream, format=path.suffix[1:], **options)
            files.write_bytes(path, stream.getvalue())


def _draw_correlation(axes: Any, result: Result) -> None:
    points = result["points"]
    for name, label, marker in (("score", "recomputed", "o"), ("running", "running", "x")):
        axes.scatter(
            [100 * point[name] for point in points],
            [100 * point["error"] for point in points],
            marker=marker,
            s=22,
            alpha=0.8,
            label=f"{label} statistics",
        )
    if points:
        axes.legend(frameon=False)
    axes.set(xlabel="SMASH score: error with generated weights, %", ylabel="error after training, %")
    axes.set_title(f"{result['networks']} random networks, {result['data']}")


def _draw_capacity(axes: Any, result: Result) -> None:
    rows = result["hypernets"]
    values = [row["kendall"]["value"] or 0.0 for row in rows]
    lows = [row["kendall"]["low"] for row in rows]
    highs = [row["kendall"]["high"] for row in rows]
    below = [value - (value if low is None else low) for value, low in zip(values, lows, strict=True)]
    above = [(value if high is None else high) - value for value, high in zip(values, highs, strict=True)]
    ranges = [[max(0.0, length) for length in side] for side in (below, above)]
    axes.errorbar([row["parameters"] for row in rows], values, yerr=ranges, fmt="o", capsize=4)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="parameters of the HyperNet", ylabel="Kendall's tau of score and error", xscale="log")


def _draw_encoding(axes: Any, result: Result) -> None:
    names = ["right", *(row["c"] for row in result["kinds"])]
    axes.boxplot([[100 * value for value in result["errors"][name]] for name in names])
    axes.set_xticks(range(1, len(names) + 1), names, fontsize=8)
    axes.set(ylabel="error with generated weights, %")


def _draw_gradient(axes: Any, result: Result) -> None:
    for name, colour, label in (("guided", "C0", "guided by dE/dc"), ("random", "C1", "random")):
        paths = result[name]
        for path in paths:
            axes.plot([100 * value for value in path], color=colour, alpha=0.25, linewidth=0.8)
        mean = [100 * sum(values) / len(values) for values in zip(*paths, strict=True)]
        axes.plot(mean, color=colour, linewidth=2, label=label)
    axes.set(xlabel="step", ylabel="best score so far, % error")
    axes.legend(frameon=False)


def _draw_transfer(axes: Any, result: Result) -> None:
    markers = ("o", "s", "^", "D")
    for target, marker in zip(result["targets"], markers * len(result["targets"]), strict=False):
        for colour, (name, rows) in enumerate(target["groups"].items()):
            axes.scatter(
                [100 * row["error"] for row in rows],
                [100 * sum(row["errors"]) / len(row["errors"]) for row in rows],
                marker=marker,
                color=f"C{colour}",
                label=f"{target['data']}: {name}",
            )
    axes.set(xlabel=f"error on {result['source']}, %", ylabel="error on the other data, %")
    axes.legend(frameon=False, fontsize=8)


def _draw_presets(axes: Any, result: Result) -> None:
    axes.scatter(
        result["random_macs"],
        [100 * value for value in result["random_errors"]],
        s=18,
        color="lightgrey",
        label="random",
    )
    for number, row in enumerate(result["patterns"]):
        axes.scatter(row["macs"], 100 * row["error"], s=45, color=f"C{number}", label=row["name"])
    axes.set(xlabel="MACs", ylabel="error after training, %", xscale="log")
    axes.legend(frameon=False, fontsize=8)


_PICTURES: dict[str, Callable[[Any, Result], None]] = {
    "correlation": _draw_correlation,
    "capacity": _draw_capacity,
    "encoding": _draw_encoding,
    "gradient": _draw_gradient,
    "transfer": _draw_transfer,
    "presets": _draw_presets,
}
