"""The page of ``search``: what was found, how far it can be trusted, and the command to repeat it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence

from smash_export.report.page import Cell, Html, Point, heading, page, paragraph, scatter, table
from smash_search.rank.finalists import Trained
from smash_search.run import SearchResult
from smash_search.space.architecture import Architecture, Block
from smash_search.space.cost import block_sizes
from smash_search.strategies import Scored
from smash_search.train.hypernet import choices_of

WINNERS = 0.2  # share of the candidates, by score, whose choices are compared with those of all
MOST_CHOICES = 16


def search_page(result: SearchResult, command: str) -> str:
    """The whole document.

    Args:
        result: of the search.
        command: that repeats it.
    """
    best, architecture = result.best, result.best.architecture
    search = best.search
    lead = (
        f"Network {architecture.key}: {result.pick.error:.2%} validation error after "
        f"{result.pick.epochs} epochs, {search['cost']['parameters']:,} parameters, "
        f"{search['cost']['macs']:,} MACs."
    )
    parts = [
        paragraph(lead, "lead"),
        paragraph(_against_random(result), ""),
        heading("Command to repeat it"),
        Html(f'<pre style="white-space: pre-wrap">{html.escape(command)}</pre>'),
        paragraph(
            f"Data {search['data']}, fingerprint {search['fingerprint'][:16]}, seed {search['seed']}, "
            + ", ".join(f"{name} {version}" for name, version in search["versions"].items()),
            "note",
        ),
        heading("Cost of each stage"),
        table(
            ["stage", "seconds", "share"],
            [
                [name, round(value, 1), f"{value / max(1e-9, sum(result.seconds.values())):.0%}"]
                for name, value in result.seconds.items()
            ],
        ),
        heading("How far the scores can be trusted"),
        *_trust(result),
        heading("Accuracy with generated weights against MACs"),
        paragraph("Full: trained as finalists. Hollow: scored only.", "note"),
        scatter(_score_points(result), "MACs (log scale)", "accuracy with generated weights"),
        heading("Pareto front of the trained networks"),
        *_front(result),
        heading("Score against error after training"),
        _score_against_trained(result),
        heading("Rungs"),
        paragraph(
            "Validation error of each network at the end of each rung. Full lines: search; dashed: random "
            "search with the same training.",
            "note",
        ),
        rung_curves(result.trained),
        _finalists_table(result),
        heading("The network"),
        network_drawing(architecture, best.input.size, len(best.classes)),
        *[
            part
            for index, block in enumerate(architecture.blocks)
            for part in (paragraph(f"Memory banks of block {index}", "note"), bank_drawing(block))
        ],
        heading("Choices that winners share"),
        *_shared_choices(result.scored),
    ]
    return page(f"Search {result.folder.name}", parts)


def _front(result: SearchResult) -> list[Html]:
    """Error against latency, or MACs where nothing was measured; and the pick within each limit."""
    timed = all("latency_ms" in entry["measures"] for entry in result.front)
    picks = {} if result.picks else {result.pick.key: "pick"}
    for limit, found in result.picks.items():
        before = picks.get(found.architecture.key)
        picks[found.architecture.key] = f"{before}, {limit}" if before else limit
    points, rows = [], list[list[Cell]]()
    for entry in result.front:
        size = entry["measures"]["latency_ms"] if timed else entry["cost"]["macs"]
        label = picks.get(entry["key"], "")
        points.append(
            Point(size, 1 - entry["error"], label or entry["key"][:6], entry["on_front"], bool(label))
        )
        if entry["on_front"]:
            rows.append(
                [
                    entry["key"],
                    f"{entry['error']:.2%}",
                    size,
                    entry["cost"]["parameters"],
                    entry["epochs"],
                    label,
                ]
            )
    size_title = "latency, ms" if timed else "MACs"
    return [
        paragraph(
            "Full: no other network is better in error, size or parameters without being worse in another. "
            "Networks that stopped at an earlier rung have had less training.",
            "note",
        ),
        scatter(points, f"{size_title} (log scale)", "accuracy after training"),
        table(["network", "error", size_title, "parameters", "epochs", "pick within"], rows),
    ]


def _against_random(result: SearchResult) -> str:
    if result.random is None:
        return "No random search was run beside it (--baseline)."
    mine, other = result.pick.error, result.random.error
    verdict = "lower" if mine < other else "higher" if mine > other else "the same"
    return (
        f"Random search with the same rungs: {other:.2%}. The search's error is {verdict}; with one seed, a "
        "difference within the error's interval says little."
    )


def _trust(result: SearchResult) -> list[Html]:
    rows: list[list[Cell]] = [
        [
            stage["images"],
            stage["entered"],
            stage.get("kept"),
            None if stage.get("kept_best") is None else f"{stage['kept_best']:.1%}",
            stage["split_half"],
        ]
        for stage in result.ranking["stages"]
    ]
    columns = ["images", "entered", "kept", "kept the best by score", "split-half reliability"]
    parts = [table(columns, rows)]
    encoding = result.ranking.get("encoding")
    if encoding:
        parts.append(
            paragraph(
                f"Mean error of {encoding['architectures']} networks with their own description c: "
                f"{encoding['error']:.2%}; with shuffled columns of c: {encoding['error_corrupted']:.2%}. "
                "If the two are equal, the HyperNet does not read c.",
                "note",
            )
        )
    return parts


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
    return points_drawing(
        [(entry.score or 0.0, entry.error, entry.key[:6], entry.key == result.pick.key) for entry in first],
        "SMASH score (error with generated weights)",
        f"error after {first[0].epochs} epochs" if first else "error",
    )


def _finalists_table(result: SearchResult) -> Html:
    last = {(entry.group, entry.key): entry for entry in result.trained}  # the latest rung of each
    ordered = sorted(last.values(), key=lambda entry: (-entry.rung, entry.error))
    rows: list[list[Cell]] = [
        [
            entry.key,
            entry.group,
            entry.reason,
            None if entry.score is None else f"{entry.score:.2%}",
            entry.macs,
            entry.epochs,
            f"{entry.error:.2%}",
            entry.diverged or "",
        ]
        for entry in ordered
    ]
    columns = ["network", "group", "why", "SMASH score", "MACs", "epochs", "error", "stopped"]
    kinds = ["chosen" if (entry.group, entry.key) == ("search", result.pick.key) else "" for entry in ordered]
    return table(columns, rows, kinds)


def _shared_choices(scored: Sequence[Scored]) -> list[Html]:
    """Share of each choice among the best networks by score against that among all."""
    usable = [entry for entry in scored if entry.score is not None]
    ranked = sorted(usable, key=lambda entry: entry.score.error if entry.score else 1.0)
    winners = ranked[: max(1, round(WINNERS * len(ranked)))]
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


def points_drawing(points: Sequence[tuple[float, float, str, bool]], x_title: str, y_title: str) -> Html:
    """Points over two linear axes of errors: (x, y, label, chosen)."""
    if not points:
        return paragraph("Nothing to draw.", "note")
    frame = _Frame([point[0] for point in points], [point[1] for point in points], x_title, y_title)
    for x, y, label, chosen in points:
        across, down = frame.place(x, y)
        frame.add(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{7 if chosen else 4.5}" fill="var(--good)">'
            f"<title>{html.escape(f'{label}: {x:.2%}, {y:.2%}')}</title></circle>"
            f'<text x="{across + 9:.1f}" y="{down + 4:.1f}">{html.escape(label)}</text>'
        )
    return frame.done()


def rung_curves(trained: Sequence[Trained]) -> Html:
    """One line per network: validation error over epochs."""
    if not trained:
        return paragraph("Nothing to draw.", "note")
    frame = _Frame(
        [float(entry.epochs) for entry in trained],
        [min(entry.error, 1.0) for entry in trained],
        "epochs",
        "validation error",
        x_format="{:.3g}",
    )
    lines: dict[tuple[str, str], list[Trained]] = {}
    for entry in trained:
        lines.setdefault((entry.group, entry.key), []).append(entry)
    for (group, key), entries in lines.items():
        places = [frame.place(entry.epochs, entry.error) for entry in entries]
        dash = "" if group == "search" else ' stroke-dasharray="5 4"'
        colour = "var(--good)" if group == "search" else "var(--soft)"
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        frame.add(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        for (x, y), entry in zip(places, entries, strict=True):
            title = html.escape(f"{key[:6]} ({group}): {entry.error:.2%} after {entry.epochs} epochs")
            frame.add(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>'
            )
    return frame.done()


def network_drawing(architecture: Architecture, size: tuple[int, ...], classes: int) -> Html:
    """The network as a row of boxes: stem, blocks with their ops, head."""
    sizes = ["x".join(map(str, axes)) for axes in block_sizes(architecture, size)]
    boxes = [("image", "x".join(map(str, size)))]
    kernel = "x".join(map(str, architecture.stem.kernel))
    boxes.append((f"stem {kernel}", f"{architecture.blocks[0].channels_in} channels, {sizes[0]}"))
    for index, block in enumerate(architecture.blocks):
        boxes.append(
            (
                f"block {index}: {len(block.ops)} ops",
                f"{block.banks} banks of {block.bank_channels}, {sizes[index]}",
            )
        )
    boxes.append(("head", f"{architecture.blocks[-1].channels_out} to {classes}"))
    step, width, height = 190, 160, 56
    across = step * len(boxes)
    drawn = [f'<svg width="{across}" viewBox="0 0 {across} 80" role="img" aria-label="the network">']
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
    width, height = left + column * len(block.ops) + 40, top + row * block.banks + 62
    drawn = [f'<svg width="{width}" viewBox="0 0 {width} {height}" role="img" aria-label="memory banks">']
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
    drawn.append(f'<text x="{left}" y="{height - 4}">hollow: read, full: written (added)</text></svg>')
    return Html("\n".join(drawn))


class _Frame:
    """Linear axes of a drawing."""

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        x_title: str,
        y_title: str,
        x_format: str = "{:.1%}",
    ) -> None:
        self._x, self._y = _range(xs), _range(ys)
        self._lines = [f'<svg viewBox="0 0 760 360" role="img" aria-label="{html.escape(y_title)}">']
        for step in range(5):
            x = self._x[0] + (self._x[1] - self._x[0]) * step / 4
            y = self._y[0] + (self._y[1] - self._y[0]) * step / 4
            across, down = self.place(x, y)
            self.add(f'<line class="grid" x1="{across:.1f}" x2="{across:.1f}" y1="20" y2="300"/>')
            self.add(f'<line class="grid" x1="70" x2="740" y1="{down:.1f}" y2="{down:.1f}"/>')
            self.add(f'<text x="{across:.1f}" y="318" text-anchor="middle">{x_format.format(x)}</text>')
            self.add(f'<text x="62" y="{down + 4:.1f}" text-anchor="end">{y:.1%}</text>')
        self.add(f'<text x="405" y="346" text-anchor="middle">{html.escape(x_title)}</text>')
        self.add(
            '<text x="16" y="160" text-anchor="middle" transform="rotate(-90 16 160)">'
            f"{html.escape(y_title)}</text>"
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return 70 + 670 * across, 300 - 280 * up

    def add(self, markup: str) -> None:
        self._lines.append(markup)

    def done(self) -> Html:
        return Html("\n".join([*self._lines, "</svg>"]))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 1e-3)
    return low - margin, high + margin
