"""The page of ``search``: what was found, how far it can be trusted, and the command to repeat it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence

from smash_export.report.chart import Axis, Chart, Point, scatter
from smash_export.report.images import class_counts, sample_images
from smash_export.report.page import Cell, Html, counted, heading, page, paragraph, scrolled, table
from smash_search.data import Dataset
from smash_search.rank.measurement import LATENCY
from smash_search.rank.ranking import EncodingCheck
from smash_search.rank.trained import Trained, expected, through_last_rung
from smash_search.rank.trust import Stage, contribution_of_score
from smash_search.space.architecture import Architecture, Block, Convolution, Op
from smash_search.space.cost import block_sizes
from smash_search.stages.picks import SearchResult
from smash_search.strategies import Scored
from smash_search.train.hypernet import choices_of

READS = 0.01  # of error that a wrong description must cost a HyperNet that reads it
FEWEST_WINNERS = 15  # below that shares of choices are chance
WINNERS = 0.2  # share of the candidates, by score, whose choices are compared with those of all
MOST_CHOICES = 16
ORDER = (
    "Networks of one rung are in the order of their loss, less what networks of the same wiring gained in "
    "later rungs; the best of each wiring went through all of them first."
)


def search_page(
    result: SearchResult,
    command: str,
    *,
    headline: str,
    facts: Sequence[tuple[str, str]] = (),
    dataset: Dataset | None = None,
) -> str:
    """The whole document.

    Args:
        result: Result of the search.
        command: Command that repeats it.
        headline: Sentence that says what was found.
        facts: name and value of what was found, for the head of the page.
        dataset: whose images are shown.
    """
    parts = [
        paragraph(headline, "lead"),
        table(["what", "value"], facts) if facts else paragraph("", ""),
        paragraph(_against_random(result), ""),
        heading("How far this can be trusted"),
        *[paragraph(verdict, "") for verdict in verdicts(result)],
        *_trust(result),
        heading("Pareto front of the trained networks"),
        *_pareto(result),
        heading("Rungs"),
        paragraph(
            "Validation error of each network at the end of each rung. Full lines: search; dashed: random "
            "search with the same training.",
            "note",
        ),
        rung_curves(result.trained),
        _finalists_table(result),
        paragraph(ORDER, "note"),
        *([heading("What each stage added"), *_stages(result.ranking.added)] if result.ranking.added else []),
        heading("Score against error after training"),
        _score_against_trained(result),
        *_scores_against_macs(result),
        *_network(result),
        heading("Choices that winners share"),
        *_shared_choices(result.scored),
        *([heading("Images"), class_counts(dataset), *sample_images(dataset)] if dataset else []),
        *_origin_of_page(result, command),
    ]
    return page(f"Search {result.folder.name}", parts)


def _scores_against_macs(result: SearchResult) -> list[Html]:
    return [
        heading("Accuracy with generated weights against MACs"),
        paragraph("Full: trained as finalists. Hollow: scored only.", "note"),
        scatter(
            _score_points(result), Axis("MACs", "log"), Axis("accuracy with generated weights", percent=True)
        ),
    ]


def _network(result: SearchResult) -> list[Html]:
    best, architecture = result.best, result.best.architecture
    return [
        heading("The network"),
        scrolled(network_drawing(architecture, best.input.size, len(best.classes))),
        paragraph(
            "Below: an op reads the banks with a hollow dot and adds to those with a full one.", "note"
        ),
        *[
            part
            for index, block in enumerate(architecture.blocks)
            for part in (
                heading(f"Memory banks of block {index}", level=3),
                scrolled(bank_drawing(block)),
                block_steps(block),
            )
        ],
    ]


def _origin_of_page(result: SearchResult, command: str) -> list[Html]:
    """What the search took, and how to repeat it."""
    search = result.best.search
    return [
        heading("Cost of each stage"),
        table(
            ["stage", "seconds", "share"],
            [
                [name, round(value, 1), f"{value / max(1e-9, sum(result.seconds.values())):.0%}"]
                for name, value in result.seconds.items()
            ],
        ),
        heading("Command to repeat it"),
        Html(f"<pre>{html.escape(command)}</pre>"),
        paragraph(
            f"Data {search.data}, fingerprint {(search.fingerprint or '')[:16]}, seed {search.seed}, "
            + ", ".join(f"{name} {version}" for name, version in search.versions.items()),
            "note",
        ),
    ]


def verdicts(result: SearchResult) -> list[str]:
    """What the numbers of a search say about its result, one sentence each."""
    said = []
    trust = result.ranking.trust
    if trust is None:
        said.append("Too few networks were scored and trained to say whether the score ranks them.")
    else:
        said.append(f"Kendall's tau of score and error after the first rung: {trust.words()}")
    if unused := result.best.search.unused:
        said.append(unused)
    if hurried := result.best.search.hurried:
        said.append(hurried)
    reliability = result.ranking.stages[-1].split_half
    if reliability is not None:
        words = (
            "repeats well"
            if reliability >= 0.8
            else "repeats in part"
            if reliability >= 0.5
            else "hardly repeats"
        )
        said.append(f"The score {words} on other images (split-half reliability {reliability:.2f}).")
    encoding = result.ranking.encoding
    if encoding is not None and encoding.error_corrupted - encoding.error < READS:
        said.append(
            "The HyperNet does not read the description of a network: with a shuffled one the error is the "
            "same. Its score tells sizes apart at best; rely on the trained errors."
        )
    return said


def _pareto(result: SearchResult) -> list[Html]:
    """Error against latency, or MACs where nothing was measured; and the pick within each limit."""
    timed = all(LATENCY in entry.measures for entry in result.pareto)
    picks = {} if result.picks else {result.pick.key: "pick"}
    for limit, found in result.picks.items():
        before = picks.get(found.trained.key)
        picks[found.trained.key] = f"{before}, {limit}" if before else limit
    points, rows = [], list[list[Cell]]()
    for entry in result.pareto:
        size = entry.measures[LATENCY] if timed else entry.cost.macs
        label = picks.get(entry.key, "")
        points.append(
            Point(
                size,
                1 - entry.error,
                label or entry.key[:6],
                entry.on_front,
                bool(label),
                f"{entry.key}: {size:.4g}, error {entry.error:.2%}",
            )
        )
        if entry.on_front:
            rows.append([entry.key, f"{entry.error:.2%}", size, entry.cost.parameters, entry.epochs, label])
    size_title = "latency, ms" if timed else "MACs"
    words = (
        f"Full: no other network is better in error, {'latency' if timed else 'MACs'} or parameters without "
        "being worse in another, after equal training. Those that stopped at an earlier rung have had less."
    )
    if timed:
        words += " Latencies are those of the first measurement, which all networks have."
    return [
        paragraph(words, "note"),
        scatter(points, Axis(size_title, "log"), Axis("accuracy after training", percent=True)),
        table(["network", "error", size_title, "parameters", "epochs", "pick within"], rows),
    ]


def _against_random(result: SearchResult) -> str:
    if result.random is None:
        return "No random search was run beside it (--baseline)."
    mine, other = result.pick.error, result.random.error
    if result.pick.group == "random":
        own = through_last_rung([entry for entry in result.trained if entry.group == "search"])[0]
        return (
            f"The pick comes from the random search beside; the best of the search's own has {own.error:.2%}."
        )
    verdict = "lower" if mine < other else "higher" if mine > other else "the same"
    return (
        f"Random search with the same rungs: {other:.2%}. The search's error is {verdict}; with one seed, a "
        "difference within the error's interval says little."
    )


def _trust(result: SearchResult) -> list[Html]:
    rows: list[list[Cell]] = [
        [
            stage.images,
            stage.entered,
            stage.kept,
            None if stage.kept_best is None else f"{stage.kept_best:.1%}",
            stage.split_half,
        ]
        for stage in result.ranking.stages
    ]
    columns = ["images", "entered", "kept", "kept the best by score", "split-half reliability"]
    parts = [table(columns, rows)]
    encoding = result.ranking.encoding
    if encoding is not None:
        parts.append(
            paragraph(
                f"Mean error of {encoding.architectures} networks with their own description c: "
                f"{encoding.error:.2%}; with shuffled columns of c: {encoding.error_corrupted:.2%}. "
                "If the two are equal, the HyperNet does not read c." + _contribution(encoding),
                "note",
            )
        )
    return parts


def _contribution(encoding: EncodingCheck) -> str:
    """Op contribution in words; runs of earlier versions have none."""
    contribution = encoding.contribution_words()
    if encoding.error_zeroed is None or contribution is None:
        return ""
    zeroed = f"{encoding.error_zeroed:.2%}"
    return f" With every generated filter set to zero: {zeroed}; op contribution {contribution}."


def _stages(stages: Sequence[Stage]) -> list[Html]:
    """What known networks, those drawn by lot, the score and each round of proposals added."""
    rows: list[list[Cell]] = [
        [
            stage.name,
            stage.trained,
            f"{stage.mean:.2%}",
            f"{stage.best:.2%}",
            f"{stage.best_so_far:.2%}",
            stage.reached_last,
            None if stage.best_last is None else f"{stage.best_last:.2%}",
            None if stage.best_last_so_far is None else f"{stage.best_last_so_far:.2%}",
        ]
        for stage in stages
    ]
    columns = ["stage", "trained", "mean error, first rung", "best", "best so far"]
    columns += ["reached the last rung", "best there", "best there so far"]
    return [table(columns, rows), paragraph(contribution_of_score(stages) or "", "note")]


def _score_points(result: SearchResult) -> list[Point]:
    entered = {entry.key for entry in result.trained if entry.group == "search"}
    points = []
    for entry in result.scored:
        if entry.score is not None:
            key = entry.candidate.architecture.key
            label = key[:6] if key == result.pick.key else ""
            points.append(
                Point(entry.cost.macs, 1 - entry.score.error, label, key in entered, key == result.pick.key)
            )
    return points


def _score_against_trained(result: SearchResult) -> Html:
    first = [entry for entry in result.trained if entry.rung == 0 and entry.score is not None]
    points = [
        Point(
            entry.score or 0.0,
            entry.error,
            entry.key[:6],
            chosen=entry.key == result.pick.key,
            title=f"{entry.key}: score {entry.score or 0.0:.2%}, trained {entry.error:.2%}",
        )
        for entry in first
    ]
    epochs = first[0].epochs if first else 0
    return scatter(
        points,
        Axis("SMASH score (error with generated weights)", percent=True),
        Axis(f"error after {counted(epochs, 'epoch')}", percent=True),
        draw_pareto=False,
    )


def _finalists_table(result: SearchResult) -> Html:
    last = {(entry.group, entry.key): entry for entry in result.trained}  # the latest rung of each
    judged = expected(result.trained)
    ordered = sorted(last.values(), key=lambda entry: (-entry.rung, judged(entry)))
    rows: list[list[Cell]] = [
        [
            entry.key,
            entry.group,
            entry.reason,
            entry.pattern,
            None if entry.score is None else f"{entry.score:.2%}",
            entry.macs,
            entry.epochs,
            f"{entry.error:.2%}",
            entry.validation_loss,
            entry.diverged or "",
        ]
        for entry in ordered
    ]
    columns = ["network", "group", "why", "wiring", "SMASH score (error)"]
    columns += ["MACs", "epochs", "error", "loss", "stopped"]
    kinds = ["chosen" if entry.key == result.pick.key else "" for entry in ordered]
    return table(columns, rows, kinds)


def _shared_choices(scored: Sequence[Scored]) -> list[Html]:
    """Share of each choice among the best networks by score against that among all."""
    usable = [entry for entry in scored if entry.score is not None]
    ranked = sorted(usable, key=lambda entry: entry.score.error if entry.score else 1.0)
    winners = ranked[: max(1, round(WINNERS * len(ranked)))]
    if len(winners) < FEWEST_WINNERS:
        words = f"The best fifth of {len(ranked)} candidates are {len(winners)} networks: too few to tell."
        return [paragraph(words, "note")]
    of_all, of_best = _shares(ranked), _shares(winners)
    moved = sorted(of_all, key=lambda name: -abs(of_best.get(name, 0.0) - of_all[name]))[:MOST_CHOICES]
    rows: list[list[Cell]] = [
        [name, f"{of_all[name]:.1%}", f"{of_best.get(name, 0.0):.1%}"]
        for name in sorted(moved, key=lambda name: of_all[name] - of_best.get(name, 0.0))
    ]
    return [
        paragraph(
            f"The {len(winners)} best of {len(ranked)} by score. Shares of what is used, not causes.",
            "note",
        ),
        table(["choice", "all networks", "best by score"], rows),
    ]


def _shares(entries: Sequence[Scored]) -> dict[str, float]:
    """Choice -> its share among the choices of its kind."""
    counts = Counter(choice for entry in entries for choice in choices_of(entry.candidate.architecture))
    kinds: Counter[str] = Counter()
    for choice, count in counts.items():
        kinds[choice.rpartition(" ")[0]] += count
    return {choice: count / kinds[choice.rpartition(" ")[0]] for choice, count in counts.items()}


# ----------------------------------------------------------------------------------------- drawings


def rung_curves(trained: Sequence[Trained]) -> Html:
    """One line per network: validation error over epochs."""
    if not trained:
        return paragraph("Nothing to draw.", "note")
    epochs = sorted({entry.epochs for entry in trained})
    chart = Chart(
        [float(count) for count in epochs],
        [min(entry.error, 1.0) for entry in trained],
        Axis("epochs", ticks=tuple(map(float, epochs))),
        Axis("validation error", percent=True),
    )
    lines: dict[tuple[str, str], list[Trained]] = {}
    for entry in trained:
        lines.setdefault((entry.group, entry.key), []).append(entry)
    for (group, key), entries in lines.items():
        mine = group == "search"
        colour = "var(--good)" if mine else "var(--soft)"
        places = [(float(entry.epochs), min(entry.error, 1.0)) for entry in entries]
        chart.line(places, colour=colour, dashed=not mine)
        for (x, y), entry in zip(places, entries, strict=True):
            title = f"{key[:6]} ({group}): {entry.error:.2%} after {counted(entry.epochs, 'epoch')}"
            chart.point(Point(x, y, "", mine, title=title), radius=3.5)
    return chart.done()


def network_drawing(architecture: Architecture, size: tuple[int, ...], classes: int) -> Html:
    """The network as a row of boxes: stem, blocks with their ops, head."""
    sizes = ["x".join(map(str, axes)) for axes in block_sizes(architecture, size)]
    boxes = [("image", "x".join(map(str, size)))]
    kernel = "x".join(map(str, architecture.stem.kernel))
    boxes.append((f"stem {kernel}", f"{architecture.blocks[0].channels_in} channels, {sizes[0]}"))
    for index, block in enumerate(architecture.blocks):
        boxes.append(
            (
                f"block {index}: {counted(len(block.ops), 'op')}",
                f"{counted(block.banks, 'bank')} of {block.bank_channels}, {sizes[index]}",
            )
        )
    boxes.append(("head", f"{architecture.blocks[-1].channels_out} to {classes}"))
    step, width, height = 190, 160, 56
    across = step * len(boxes)
    drawn = [_drawing("the network", across, 80)]
    for number, (name, detail) in enumerate(boxes):
        x = step * number + 5
        drawn.append(
            f'<rect x="{x}" y="12" width="{width}" height="{height}" rx="6" fill="none" class="axis"/>'
            f'<text x="{x + width / 2}" y="36" text-anchor="middle">{html.escape(name)}</text>'
            f'<text x="{x + width / 2}" y="54" text-anchor="middle">{html.escape(detail)}</text>'
        )
        if number:
            drawn.append(f'<path class="axis" d="M{x - 28} 40 H{x - 6} m-6 -5 l6 5 l-6 5" fill="none"/>')
    return Html("\n".join([*drawn, "</svg>"]))


def bank_drawing(block: Block) -> Html:
    """A block as a graph of memory banks: one row per bank, one column per op, dots for reads and writes."""
    row, column, left, top = 18, 150, 90, 30
    width, height = left + column * len(block.ops) + 40, top + row * block.banks + 44
    drawn = [_drawing("memory banks", width, height)]
    for bank in range(block.banks):
        y = top + row * bank
        kind = "input" if bank < block.input_banks else "bank"
        drawn.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{kind} {bank}</text>')
        drawn.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y}" y2="{y}"/>')
    bottom = top + row * block.banks
    for number, op in enumerate(block.ops):
        x = left + column * number + column // 2
        for bank in op.reads:
            y = top + row * bank
            drawn.append(f'<path class="axis" d="M{x - 30} {y} L{x} {bottom}" fill="none" opacity="0.5"/>')
            drawn.append(f'<circle cx="{x - 30}" cy="{y}" r="4" fill="var(--paper)" stroke="var(--soft)"/>')
        for bank in op.writes:
            y = top + row * bank
            drawn.append(f'<path class="front" d="M{x} {bottom} L{x + 30} {y}" fill="none" opacity="0.7"/>')
            drawn.append(f'<circle cx="{x + 30}" cy="{y}" r="4" fill="var(--good)"/>')
        kernels = " ".join(
            "x".join(map(str, conv.kernel)) + (f" d{max(conv.dilation)}" if max(conv.dilation) > 1 else "")
            for conv in op.convs
            if conv is not None
        )
        drawn.append(
            f'<rect x="{x - 70}" y="{bottom}" width="140" height="40" rx="5" fill="var(--mark)"/>'
            f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{op.bottleneck} to {op.units}</text>'
            f'<text x="{x}" y="{bottom + 32}" text-anchor="middle">{html.escape(kernels)}</text>'
        )
    return Html("\n".join([*drawn, "</svg>"]))


def _drawing(name: str, width: int, height: int) -> str:
    """The tag that begins a drawing."""
    return (
        f'<svg class="drawing" width="{width}" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
    )


def block_steps(block: Block) -> Html:
    """A block in words: what each op reads, does and writes, in order."""
    rows: list[list[Cell]] = []
    for number, op in enumerate(block.ops):
        inputs = len(op.reads) * block.bank_channels
        reads = f"{_banks(op.reads)}: {inputs} channels"
        rows.append([number, reads, _computed(op, inputs), _banks(op.writes)])
    return table(["op", "reads", "does", "adds to"], rows)


def _banks(numbers: Sequence[int]) -> str:
    return f"bank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _computed(op: Op, inputs: int) -> str:
    dims = next((len(conv.kernel) for conv in op.convs if conv is not None), 2)
    words = [_step(conv) for conv in op.convolutions(inputs, dims)]
    if op.gate:
        words.append("gated by the second branch")
    return ", ".join(words) or "passes on what it reads"


def _step(conv: Convolution) -> str:
    if conv.name in ("squeeze", "excite"):
        return f"{conv.name} to {conv.outputs}"
    words = "x".join(map(str, conv.kernel))
    if max(conv.dilation) > 1:
        words += f" dilated {max(conv.dilation)}"
    if conv.groups > 1:
        depthwise = conv.groups == conv.inputs == conv.outputs
        words += " depthwise" if depthwise else f" in {conv.groups} groups"
    return f"{words} to {conv.outputs}"
