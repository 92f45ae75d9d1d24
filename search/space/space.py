"""The memory-bank space: its limits, legal draws, mutation, crossover and size. No torch.

After section 3.1 of the SMASH paper and the sampler of its program, without that sampler's defects:
every draw is legal by construction, every input bank is read, no channel is dropped. A draw is a pure
function of (seed, slot), so that one process, eight GPUs and a resumed run see the same architectures.

Sizes are counted in *units* of ``unit`` channels: the tile of the HyperNet's output. How likely each network
is to be drawn is not the space's matter but its prior's (:mod:`smash_search.space.prior`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_search.space import regular
from smash_search.space.architecture import (
    ACTIVATIONS,
    ACTIVE_PATTERNS,
    SLOTS,
    Architecture,
    Block,
    Conv,
    InputSpec,
    Op,
    Stem,
)
from smash_search.space.draws import Draws
from smash_search.space.prior import FORMS, LARGEST_EXPANSION, PAPER, REGULAR, Prior

# Share of the training at which a kernel size enters (the original program's schedule).
KERNEL_ENTERS = {3: 0.0, 5: 0.125, 7: 0.375}
MAX_STRIDE = 8  # of the stem
LINEAR = 0.05  # probability that a mutation of a regular network leaves an activation out


@dataclass(frozen=True)
class Space:
    """Limits of a space; plain data, so that a run folder holds the space it searched.

    Attributes:
        unit: channels of one unit (N of the paper's program).
        dims: 2 for images, 3 for voxels.
        stem_kernel, stem_strides: First convolution, the same along every axis; a larger stride widens
            the kernel (:meth:`stem`).
        pools: choices of the average's window between blocks.
        widths: per block, the choices of its input width in units; the network has as many blocks.
        bank_units: choices of a bank's channels in units.
        max_banks: most banks of a block.
        max_ops: most ops of a block.
        max_units, max_bottleneck: most units of an op's output and of its 1x1 convolution.
        reference_reads: per block, incoming units over all ops of the reference network (1.0).
        budget: smallest and largest share of the reference that a draw may spend.
        kernels, dilations: choices per axis; ``dilations[k]`` is the largest dilation of kernel k.
        per_axis: whether the axes of a kernel are drawn independently.
        groups: choices; those that do not divide the channels of an op are left out.
        patterns: probability of each active pattern.
        activations: choices per convolution.
        gate: probability that two branches are multiplied.
        balanced: use every choice equally often over consecutive slots (strict fairness).
        forms: Forms of ops (:data:`smash_search.space.prior.FORMS`).
        squeeze: whether ops may have squeeze-excitation.
        size: smallest axis of the images, so that no kernel is drawn wider than its map; 0 where unknown.
        prior: how likely each network is.
    """

    name: str
    unit: int
    widths: tuple[tuple[int, ...], ...]
    bank_units: tuple[int, ...]
    max_banks: int
    max_ops: int
    max_units: int
    max_bottleneck: int
    reference_reads: tuple[int, ...]
    budget: tuple[float, float] = (0.1, 1.0)
    dims: int = 2
    stem_kernel: int = 3
    stem_strides: tuple[int, ...] = (1,)
    pools: tuple[int, ...] = (2,)
    kernels: tuple[int, ...] = (3, 5, 7)
    dilations: tuple[tuple[int, int], ...] = ((3, 3), (5, 2), (7, 1))
    per_axis: bool = True
    groups: tuple[int, ...] = (1, 2, 4, 8)
    patterns: tuple[tuple[str, float], ...] = (
        ("1000", 0.05),
        ("1010", 0.10),
        ("1100", 0.15),
        ("1110", 0.25),
        ("1111", 0.45),
    )
    activations: tuple[str, ...] = ("relu",)
    gate: float = 0.0
    balanced: bool = False
    forms: tuple[str, ...] = ("reduced",)
    squeeze: bool = False
    size: int = 0
    prior: Prior = PAPER

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise InvalidInputError(
                    f"space field {name!r}", expected=expected, received=getattr(self, name)
                )

        need(self.dims in (2, 3), "dims", "2 or 3")
        need(1 <= self.unit <= 256, "unit", "1 to 256")
        need(1 <= len(self.widths) <= 16, "widths", "one entry per block, 1 to 16 blocks")
        need(
            len(self.reference_reads) == len(self.widths),
            "reference_reads",
            f"{len(self.widths)} entries, one per block",
        )
        need(1 in self.bank_units, "bank_units", "choices that include 1, so that any width divides")
        need(max(self.bank_units) <= self.max_units, "bank_units", "at most max_units")
        need(
            self.max_banks > max(max(choices) for choices in self.widths),
            "max_banks",
            "more than the widest input in banks of one unit",
        )
        need(0 < self.budget[0] <= self.budget[1], "budget", "0 < smallest <= largest")
        need(3 in self.kernels or len(self.kernels) == 1, "kernels", "choices that include 3")
        need(
            {kernel for kernel, _ in self.dilations} >= set(self.kernels),
            "dilations",
            "a largest dilation for each kernel",
        )
        need(1 in self.groups, "groups", "choices that include 1")
        need(set(self.activations) <= set(ACTIVATIONS), "activations", " or ".join(ACTIVATIONS))
        names = [pattern for pattern, _ in self.patterns]
        need(set(names) <= set(ACTIVE_PATTERNS), "patterns", " or ".join(ACTIVE_PATTERNS))
        need(bool(self.forms) and set(self.forms) <= set(FORMS), "forms", " or ".join(FORMS))
        need(bool(self.stem_strides) and min(self.stem_strides) >= 1, "stem_strides", "1 and more")
        need(max(self.pools, default=0) >= 2 and min(self.pools) >= 1, "pools", "1 and more, one above 1")
        if self.prior.sampler == "regular":
            self._check_prior()

    def _check_prior(self) -> None:
        """Raise InvalidInputError unless the prior gives a share to some option of each kind in the space."""
        prior = self.prior
        drawn = {form for form, share in prior.forms if share > 0 and form in self.forms}
        patterns = {pattern for pattern, weight in self.patterns if weight > 0}
        if not drawn & {"plain", "reduced"}:
            patterns = {pattern for pattern, _ in prior.patterns}  # none is drawn
        possible = {
            "forms": bool(drawn),
            "depths": any(share > 0 for depth, share in prior.depths if depth <= self.max_ops),
            "activations": any(share > 0 for name, share in prior.activations if name in self.activations),
            "patterns": any(share > 0 for pattern, share in prior.patterns if pattern in patterns),
            "stems": any(share > 0 for share in prior.stems[: len(self.stem_strides)]),
            "kernels": any(share > 0 for kernel, share in prior.kernels if kernel in self.kernels),
        }
        for name, found in possible.items():
            if not found:
                raise InvalidInputError(
                    f"prior {prior.name}, field {name!r}",
                    expected=f"a share above 0 for something that the space {self.name} has",
                    received=getattr(prior, name),
                )

    @property
    def blocks(self) -> int:
        """Blocks of every network of the space."""
        return len(self.widths)

    @property
    def stem_stride(self) -> int:
        """The smallest stride of the stem."""
        return self.stem_strides[0]

    def stem(self, stride: int) -> Stem:
        """The first convolution with that stride; above 2 its kernel covers every pixel."""
        kernel = (
            self.stem_kernel
            if stride <= 2
            else max(self.stem_kernel, 7 if stride <= 4 else stride + 1 - stride % 2)
        )
        return Stem((kernel,) * self.dims, (stride,) * self.dims)

    def to_json(self) -> JsonObject:
        """Plain lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Space:
        """Read :meth:`to_json` back; raises InvalidInputError for unknown or malformed fields."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) - names:
            raise InvalidInputError("space", expected=", ".join(sorted(names)), received=value)
        fields_given = {name: _tuples(entry) for name, entry in value.items() if name != "prior"}
        if "prior" in value:
            fields_given["prior"] = Prior.from_json(value["prior"])
        try:
            return cls(**fields_given)
        except TypeError as error:
            raise InvalidInputError("space has missing or malformed fields", received=error) from None

    # ------------------------------------------------------------------------------------- draws

    def draw(self, seed: int, slot: int, progress: float = 1.0) -> Architecture:
        """The architecture at (seed, slot).

        Args:
            seed: Random seed of the run.
            slot: number of the draw: step * architectures per step + position.
            progress: share of the HyperNet's training done; kernels and budgets grow with it.
        """
        return self._draw(Draws(seed, slot, self.balanced), progress)

    def _draw(self, draws: Draws, progress: float = 1.0) -> Architecture:
        if self.prior.sampler == "regular":
            return regular.draw_regular(self, draws)
        return self._draw_as_paper(draws, progress)

    def _draw_as_paper(self, draws: Draws, progress: float = 1.0) -> Architecture:
        share = self._draw_budget(draws, progress)
        kernels = self._kernels_at(progress)
        blocks = tuple(self._draw_block(draws, index, share, kernels) for index in range(self.blocks))
        return Architecture(self.stem(draws.pick("stem.stride", self.stem_strides)), blocks)

    def _draw_budget(self, draws: Draws, progress: float) -> float:
        low, high = self.budget
        high = max(low, high * min(1.0, 0.5 + progress))  # half at the start, all from the middle on
        # Evenly over orders of magnitude: small networks are as many as large ones.
        return math.exp(draws.uniform("budget", math.log(low), math.log(high)))

    def _kernels_at(self, progress: float) -> tuple[int, ...]:
        entered = tuple(k for k in self.kernels if progress >= KERNEL_ENTERS.get(k, 0.0))
        return entered or self.kernels[:1]

    def _draw_block(self, draws: Draws, index: int, share: float, kernels: tuple[int, ...]) -> Block:
        where = f"block{index}"
        width = draws.pick(f"{where}.width", self.widths[index])
        bank = draws.pick(f"{where}.bank", [size for size in self.bank_units if width % size == 0])
        inputs = width // bank
        left = max(inputs * bank, round(share * self.reference_reads[index]))
        held = inputs
        ops: list[Op] = []
        while len(ops) < self.max_ops and left >= bank:
            op, held = self._draw_op(draws, f"{where}.op{len(ops)}", bank, held, left // bank, kernels)
            left -= len(op.reads) * bank
            ops.append(op)
        ops = self.read_every_input(draws, where, ops, inputs, bank)
        return Block(width * self.unit, bank * self.unit, held, tuple(ops))

    def _draw_op(
        self,
        draws: Draws,
        where: str,
        bank: int,
        held: int,
        most_reads: int,
        kernels: tuple[int, ...],
    ) -> tuple[Op, int]:
        reads = self.draw_reads(draws, where, held, most_reads)
        chunks, writes, held = self.draw_writes(draws, where, bank, held)
        return self._draw_inside(draws, where, bank, reads, writes, chunks, kernels), held

    def _draw_inside(
        self,
        draws: Draws,
        where: str,
        bank: int,
        reads: tuple[int, ...],
        writes: tuple[int, ...],
        chunks: int,
        kernels: tuple[int, ...],
    ) -> Op:
        """An op between given banks, every choice as likely as every other one."""
        form = draws.pick(f"{where}.form", self.forms)
        inputs, units = len(reads) * bank, chunks * bank
        bottleneck = inputs
        if form != "plain":
            bottleneck = self._draw_bottleneck(draws, where, inputs, form in ("projected", "pointwise"))
        project = None
        if form in ("projected", "pointwise"):
            project = self._draw_activation(draws, f"{where}.project")
        width = units if project is None else bottleneck
        convs: tuple[Conv | None, ...] = (None,) * SLOTS
        if form != "pointwise":
            convs = self._draw_convs(draws, where, bottleneck, width, kernels)
        gate = convs[2] is not None and self.gate > 0 and draws.chance(f"{where}.gate", self.gate)
        squeeze = 0
        if self.squeeze and draws.chance(f"{where}.squeeze", 0.5):
            squeeze = regular.squeeze_of(self, width)
        return Op(
            reads,
            writes,
            bottleneck * self.unit,
            units * self.unit,
            convs,
            gate,
            reduce=form != "plain",
            project=project,
            squeeze=squeeze,
        )

    def draw_reads(self, draws: Draws, where: str, held: int, most: int) -> tuple[int, ...]:
        """Banks to read: up to ``most`` of those that hold something."""
        count = draws.pick(f"{where}.reads", range(1, min(held, most) + 1))
        return draws.subset(f"{where}.read", held, count)

    @property
    def depthwise(self) -> bool:
        """Whether a convolution may work on each channel on its own, whatever ``groups`` says."""
        return "projected" in self.forms

    @property
    def widest_op(self) -> Op:
        """Everything that an op of the space may have beside its branches, as wide as it may be."""
        most = max(self.max_units, self.max_bottleneck) * self.unit
        squeeze = most // regular.SQUEEZE_SHARE if self.squeeze else 0
        return Op((0,), (0,), most, most, (None,) * SLOTS, project="none", squeeze=squeeze)

    def draw_writes(self, draws: Draws, where: str, bank: int, held: int) -> tuple[int, tuple[int, ...], int]:
        """Chunks of output, banks written, and banks that hold something afterwards."""
        chunks = draws.pick(f"{where}.chunks", range(1, min(self.max_units // bank, held) + 1))
        reachable = min(self.max_banks, held + chunks)  # new banks are opened in order
        counts = range(chunks, max(chunks, reachable // 2) + 1)
        weights = [math.exp(-count) for count in counts]
        count = draws.pick(f"{where}.writes", counts, weights)
        chosen = draws.subset(f"{where}.write", reachable, count)
        opened = sum(target >= held for target in chosen)
        old = [target for target in chosen if target < held]
        return chunks, (*old, *range(held, held + opened)), held + opened

    def _draw_bottleneck(self, draws: Draws, where: str, reads: int, expands: bool = False) -> int:
        most = min(self.max_bottleneck, max(1, reads) * (LARGEST_EXPANSION if expands else 1))
        return draws.pick(f"{where}.bottleneck", range(1, most + 1))

    def _draw_convs(
        self, draws: Draws, where: str, bottleneck: int, units: int, kernels: tuple[int, ...]
    ) -> tuple[Conv | None, ...]:
        names = [pattern for pattern, _ in self.patterns]
        weights = [weight for _, weight in self.patterns]
        pattern = draws.pick(f"{where}.pattern", names, weights)
        return tuple(
            self.draw_conv(draws, f"{where}.conv{slot}", units if slot % 2 else bottleneck, units, kernels)
            if active == "1"
            else None
            for slot, active in enumerate(pattern)
        )

    def _draw_activation(self, draws: Draws, name: str) -> str:
        """Any of them alike. Beside a regular prior "none" is rare, and comes from a stream of its own:
        whatever else is drawn does not depend on whether the space has it.
        """
        others = tuple(activation for activation in self.activations if activation != "none")
        if self.prior.sampler != "regular" or not others or others == self.activations:
            return draws.pick(name, self.activations)
        activation = draws.pick(name, others)
        return "none" if draws.within(name).chance(name, LINEAR) else activation

    def draw_conv(
        self, draws: Draws, where: str, channels_in: int, units: int, kernels: tuple[int, ...]
    ) -> Conv:
        """A convolution from ``channels_in`` to ``units``, both in units."""
        largest = dict(self.dilations)
        axes = range(self.dims if self.per_axis else 1)
        kernel = tuple(draws.pick(f"{where}.kernel{axis}", kernels) for axis in axes)
        dilation = tuple(
            draws.pick(f"{where}.dilation{axis}", range(1, largest[kernel[axis]] + 1)) for axis in axes
        )
        if not self.per_axis:
            kernel, dilation = kernel * self.dims, dilation * self.dims
        channels = channels_in * self.unit
        allowed = [g for g in self.groups if channels % g == 0 and units * self.unit % g == 0]
        if self.depthwise and channels == units * self.unit and channels not in allowed:
            allowed.append(channels)
        return Conv(
            kernel,
            dilation,
            draws.pick(f"{where}.groups", allowed),
            self._draw_activation(draws, f"{where}.activation"),
        )

    def read_every_input(self, draws: Draws, where: str, ops: list[Op], inputs: int, bank: int) -> list[Op]:
        """Add each input bank that no op reads to one op; keeps every channel of the input in use."""
        read = {bank for op in ops for bank in op.reads}
        for unread in sorted(set(range(inputs)) - read):
            index = draws.pick(f"{where}.cover{unread}", range(len(ops)))
            ops[index] = self._reading(ops[index], tuple(sorted({*ops[index].reads, unread})), bank)
        return ops

    def _may_group(self, groups: int, inputs: int, outputs: int) -> bool:
        """Whether a convolution between so many channels may have so many groups."""
        whole = inputs % groups == 0 and outputs % groups == 0
        return whole and (groups in self.groups or (self.depthwise and groups == inputs == outputs))

    def _reading(self, op: Op, reads: tuple[int, ...], bank: int) -> Op:
        """The same op reading other banks; one without a first 1x1 convolution takes what it reads."""
        if op.reduce or len(reads) == len(op.reads):
            return replace(op, reads=reads)
        channels = len(reads) * bank * self.unit
        convs = list(op.convs)
        width = op.units if op.project is None else channels
        for slot, conv in enumerate(op.convs):
            if conv is not None:
                inputs = width if slot % 2 else channels
                convs[slot] = conv if self._may_group(conv.groups, inputs, width) else replace(conv, groups=1)
        return replace(op, reads=reads, bottleneck=channels, convs=tuple(convs))

    # ------------------------------------------------------------------------- moves in the space

    def mutate(self, architecture: Architecture, seed: int, slot: int, rate: float = 0.05) -> Architecture:
        """A neighbour: every choice of every op changes with probability ``rate``; never the same one.

        Ops are added and removed, blocks get another width and bank size, so that every choice of the
        space can be reached. The result is inside the space.
        """
        draws = Draws(seed, slot, False)
        for attempt in range(100):
            stage = draws.within(f"mutation{attempt}")
            if self.prior.sampler == "regular" and stage.chance("structure", 0.5):
                mutant = regular.vary(self, architecture, stage)
            else:
                mutant = self._mutate_choices(stage, architecture, min(1.0, rate * (1 + attempt / 5)))
            if mutant != architecture:
                return mutant
        return self._draw(draws)

    def _mutate_choices(self, draws: Draws, architecture: Architecture, rate: float) -> Architecture:
        stem = architecture.stem
        if len(self.stem_strides) > 1 and draws.chance("stem?", rate):
            stem = self.stem(draws.pick("stem.stride", self.stem_strides))
        blocks = []
        for index, block in enumerate(architecture.blocks):
            mutant = self._mutate_block(draws, index, block, rate)
            if index and len(self.pools) > 1 and draws.chance(f"block{index}.pool?", rate):
                mutant = replace(mutant, pool=draws.pick(f"block{index}.pool", self.pools))
            blocks.append(mutant)
        return Architecture(stem, tuple(blocks))

    def _mutate_block(self, draws: Draws, index: int, block: Block, rate: float) -> Block:
        where = f"block{index}"
        if draws.chance(f"{where}.redraw", rate):
            fresh = self._draw_block(draws.within(where), index, self._draw_budget(draws, 1.0), self.kernels)
            return replace(fresh, pool=block.pool)
        bank = block.bank_channels // self.unit
        inputs = held = block.input_banks
        ops: list[Op] = []
        for number, op in enumerate(block.ops):
            name = f"{where}.op{number}"
            if len(block.ops) > 1 and draws.chance(f"{name}.drop", rate / 4):
                continue
            if draws.chance(f"{name}.insert", rate / 4) and len(ops) < self.max_ops:
                extra, held = self._draw_op(
                    draws, f"{name}.new", bank, held, max(1, self.max_units // bank), self.kernels
                )
                ops.append(extra)
            if len(ops) < self.max_ops:
                op, held = self._mutate_op(draws, name, op, bank, held, rate)
                ops.append(op)
        if not ops:
            op, held = self._draw_op(draws, f"{where}.only", bank, held, inputs, self.kernels)
            ops.append(op)
        return replace(block, banks=held, ops=tuple(self.read_every_input(draws, where, ops, inputs, bank)))

    def _mutate_op(
        self, draws: Draws, where: str, op: Op, bank: int, held: int, rate: float
    ) -> tuple[Op, int]:
        """Repair what earlier mutations of the block broke, then change each choice with ``rate``."""
        reads = tuple(target for target in op.reads if target < held)
        if not reads or draws.chance(f"{where}.reads?", rate):
            reads = self.draw_reads(draws, where, held, held)
        chunks = op.units // (bank * self.unit)
        opened = sum(target >= held for target in op.writes)
        old = tuple(target for target in op.writes if target < held)
        opened = min(opened, self.max_banks - held, chunks)
        writes = (*old, *range(held, held + opened))
        if len(writes) < chunks or draws.chance(f"{where}.writes?", rate):
            chunks, writes, held = self.draw_writes(draws, where, bank, held)
        else:
            held += opened
        if len(self.forms) > 1 and draws.chance(f"{where}.form?", rate):
            return self._draw_inside(draws, where, bank, reads, writes, chunks, self.kernels), held
        return self._mutate_inside(draws, where, op, bank, reads, writes, chunks, rate), held

    def _mutate_inside(
        self,
        draws: Draws,
        where: str,
        op: Op,
        bank: int,
        reads: tuple[int, ...],
        writes: tuple[int, ...],
        chunks: int,
        rate: float,
    ) -> Op:
        """Everything of an op but its banks and its form."""
        inputs, units = len(reads) * bank, chunks * bank
        expands = op.project is not None
        bottleneck = inputs
        if op.reduce:
            most = inputs * (LARGEST_EXPANSION if expands else 1)
            bottleneck = min(op.bottleneck // self.unit, self.max_bottleneck, most)
            if draws.chance(f"{where}.bottleneck?", rate):
                bottleneck = self._draw_bottleneck(draws, where, inputs, expands)
        project = op.project
        if project is not None and draws.chance(f"{where}.project?", rate):
            project = self._draw_activation(draws, f"{where}.project")
        width = bottleneck if expands else units
        if op.branches() and draws.chance(f"{where}.pattern?", rate):
            convs = self._draw_convs(draws, where, bottleneck, width, self.kernels)
        else:
            convs = tuple(
                None
                if conv is None
                else self._mutate_conv(
                    draws, f"{where}.conv{slot}", conv, width if slot % 2 else bottleneck, width, rate
                )
                for slot, conv in enumerate(op.convs)
            )
        gate = op.gate and convs[2] is not None
        if convs[2] is not None and self.gate > 0 and draws.chance(f"{where}.gate?", rate):
            gate = not gate
        squeeze = regular.squeeze_of(self, width) if op.squeeze else 0
        if self.squeeze and draws.chance(f"{where}.squeeze?", rate):
            squeeze = 0 if squeeze else regular.squeeze_of(self, width)
        sizes = bottleneck * self.unit, units * self.unit
        return Op(reads, writes, *sizes, convs, gate, op.reduce, project, squeeze)

    def _mutate_conv(
        self, draws: Draws, where: str, conv: Conv, channels_in: int, units: int, rate: float
    ) -> Conv:
        fresh = self.draw_conv(draws, where, channels_in, units, self.kernels)
        channels = channels_in * self.unit
        kept = self._may_group(conv.groups, channels, units * self.unit)
        if draws.chance(f"{where}.groups?", rate) or not kept:
            conv = replace(conv, groups=fresh.groups)
        if draws.chance(f"{where}.kernel?", rate):  # a dilation is legal for its kernel only
            conv = replace(conv, kernel=fresh.kernel, dilation=fresh.dilation)
        if draws.chance(f"{where}.activation?", rate):
            conv = replace(conv, activation=fresh.activation)
        return conv

    def crossover(self, a: Architecture, b: Architecture, seed: int, slot: int) -> Architecture:
        """A child: each block whole from one parent, and the stem; blocks meet only in their transitions."""
        draws = Draws(seed, slot, False)
        pairs = zip(a.blocks, b.blocks, strict=True)
        blocks = tuple(pair[draws.pick(f"parent{index}", (0, 1))] for index, pair in enumerate(pairs))
        stem = a.stem if a.stem == b.stem else (a.stem, b.stem)[draws.pick("stem", (0, 1))]
        return Architecture(stem, blocks)

    def check(self, architecture: Architecture) -> None:
        """Raise InvalidInputError unless ``architecture`` is inside the space, naming the choice."""

        def need(condition: bool, where: str, expected: object, received: object) -> None:
            if not condition:
                raise InvalidInputError(
                    f"{where} is outside the space {self.name}", expected=expected, received=received
                )

        need(architecture.dims == self.dims, "stem.kernel", f"{self.dims} axes", architecture.dims)
        stems = [self.stem(stride) for stride in self.stem_strides]
        strides = [stem.stride for stem in stems]
        need(architecture.stem.stride in strides, "stem.stride", strides, architecture.stem.stride)
        kernel = stems[strides.index(architecture.stem.stride)].kernel
        need(architecture.stem.kernel == kernel, "stem.kernel", kernel, architecture.stem.kernel)
        need(len(architecture.blocks) == self.blocks, "blocks", self.blocks, len(architecture.blocks))
        for index, block in enumerate(architecture.blocks):
            name = f"blocks[{index}]"
            widths = [width * self.unit for width in self.widths[index]]
            banks = [size * self.unit for size in self.bank_units]
            need(block.channels_in in widths, f"{name}.channels_in", widths, block.channels_in)
            need(block.bank_channels in banks, f"{name}.bank_channels", banks, block.bank_channels)
            need(block.banks <= self.max_banks, f"{name}.banks", self.max_banks, block.banks)
            need(1 <= len(block.ops) <= self.max_ops, f"{name}.ops", self.max_ops, len(block.ops))
            read = {bank for op in block.ops for bank in op.reads}
            unread = sorted(set(range(block.input_banks)) - read)
            need(not unread, f"{name}.ops", "every input bank read", f"unread banks {unread}")
            need(not index or block.pool in self.pools, f"{name}.pool", self.pools, block.pool)
            for number, op in enumerate(block.ops):
                self._check_op(f"{name}.ops[{number}]", op, len(op.reads) * block.bank_channels, need)

    def _check_op(
        self, where: str, op: Op, inputs: int, need: Callable[[bool, str, object, object], None]
    ) -> None:
        form = form_of(op)
        need(form in self.forms, where, " or ".join(self.forms), form)
        top = self.max_units * self.unit
        need(op.units <= top, f"{where}.units", f"at most {top}", op.units)
        if op.reduce:
            top = self.max_bottleneck * self.unit
            need(
                op.bottleneck <= top and op.bottleneck % self.unit == 0,
                f"{where}.bottleneck",
                f"multiples of {self.unit} up to {top}",
                op.bottleneck,
            )
        if op.project is not None:
            top = inputs * LARGEST_EXPANSION
            need(op.bottleneck <= top, f"{where}.bottleneck", f"at most {top}", op.bottleneck)
        if op.branches():
            patterns = [pattern for pattern, weight in self.patterns if weight > 0]
            need(op.pattern in patterns, f"{where}.convs", patterns, op.pattern)
        need(not op.gate or self.gate > 0, f"{where}.gate", "no gate", op.gate)
        need(self.squeeze or not op.squeeze, f"{where}.squeeze", "none", op.squeeze)
        known = op.project is None or op.project in self.activations
        need(known, f"{where}.project", self.activations, op.project)
        for slot, conv in enumerate(op.convs):
            if conv is not None:
                channels = op.width if slot % 2 else op.bottleneck
                self._check_conv(f"{where}.convs[{slot}]", conv, channels == op.width, op.width, need)

    def _check_conv(
        self,
        where: str,
        conv: Conv,
        square: bool,
        channels: int,
        need: Callable[[bool, str, object, object], None],
    ) -> None:
        need(set(conv.kernel) <= set(self.kernels), f"{where}.kernel", self.kernels, conv.kernel)
        largest = dict(self.dilations)
        limits = [largest[size] for size in conv.kernel]
        fits = all(d <= top for d, top in zip(conv.dilation, limits, strict=True))
        need(fits, f"{where}.dilation", f"at most {limits}", conv.dilation)
        alone = self.depthwise and square and conv.groups == channels
        need(alone or conv.groups in self.groups, f"{where}.groups", self.groups, conv.groups)
        need(conv.activation in self.activations, f"{where}.activation", self.activations, conv.activation)

    def log10_size(self, samples: int = 500, seed: int = 0) -> float:
        """Effective number of architectures, as a power of ten.

        The mean of -log10 of a draw's probability: exact for equally likely draws, and a lower bound
        on the number of draws otherwise (Jensen).
        """
        total = 0.0
        for slot in range(samples):
            draws = Draws(seed, slot, False)
            self._draw(draws)
            total += draws.surprise
        return total / samples / math.log(10)


def form_of(op: Op) -> str:
    """Which of :data:`smash_search.space.prior.FORMS` an op has; "reduced" where it is none of the others."""
    if op.project is not None:
        return "projected" if op.branches() else "pointwise"
    return "reduced" if op.reduce else "plain"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------- the named spaces

SPACES: dict[str, Space] = {
    # The paper's forms of op for images of a few pixels.
    "tiny": Space(
        name="tiny",
        unit=4,
        widths=((1, 2, 4), (2, 4, 8)),
        bank_units=(1, 2, 4),
        max_banks=16,
        max_ops=6,
        max_units=4,
        max_bottleneck=6,
        reference_reads=(24, 32),
        budget=(0.15, 1.0),
        groups=(1, 2, 4),
    ),
    # For images of a few pixels, every form of op: seconds of training on one core.
    "edge-tiny": Space(
        name="edge-tiny",
        unit=4,
        widths=((1, 2, 3, 4), (2, 3, 4, 6)),
        bank_units=(1, 2, 3, 4, 6),
        max_banks=16,
        max_ops=6,
        max_units=6,
        max_bottleneck=12,
        reference_reads=(24, 32),
        budget=(0.15, 1.0),
        groups=(1, 2, 4),
        activations=("relu", "relu6", "hard_swish", "leaky_relu", "none"),
        forms=("plain", "reduced", "projected", "pointwise"),
        squeeze=True,
        prior=REGULAR,
    ),
    # For images of 28 to 32 pixels searched on a CPU: a stem with stride 2, and parameters and MACs
    # over a factor of thirty, so that networks differ by more than the noise of their training.
    "small": Space(
        name="small",
        unit=4,
        widths=((2, 3, 4, 6), (4, 6, 8), (6, 8, 12)),
        bank_units=(1, 2, 4),
        max_banks=24,
        max_ops=8,
        max_units=6,
        max_bottleneck=8,
        reference_reads=(24, 48, 64),
        budget=(0.08, 1.0),
        stem_strides=(2,),
    ),
    # For the same images and devices of a tenth to one millisecond: wide banks and blocks that widen, whose
    # convolutions a runtime vectorises well. A training step takes about twice the time of "small".
    "medium": Space(
        name="medium",
        unit=8,
        widths=((2, 3, 4), (4, 6, 8), (6, 8, 12)),
        bank_units=(1, 2, 4),
        max_banks=32,
        max_ops=8,
        max_units=12,
        max_bottleneck=12,
        reference_reads=(16, 32, 48),
        budget=(0.06, 1.0),
        stem_strides=(2,),
    ),
    # For images of 16 pixels and more and devices of a tenth to some milliseconds: every form of op,
    # wide banks, regular networks of 1 to 60 MMACs at 32 pixels. What a search takes unless a space is named.
    "edge": Space(
        name="edge",
        unit=8,
        widths=((2, 3, 4, 5, 6), (3, 4, 6, 8, 10, 12), (4, 6, 8, 12, 16, 20, 24)),
        bank_units=(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24),
        max_banks=48,
        max_ops=8,
        max_units=24,
        max_bottleneck=48,
        reference_reads=(16, 32, 48),
        budget=(0.06, 1.0),
        stem_strides=(1, 2, 4),
        pools=(1, 2),
        activations=("relu", "relu6", "hard_swish", "leaky_relu", "none"),
        forms=("plain", "reduced", "projected", "pointwise"),
        squeeze=True,
        prior=REGULAR,
    ),
    # The size of the paper's program (depth 12, width 4, N 8, N_max 64): one GPU.
    "paper": Space(
        name="paper",
        unit=8,
        widths=((4, 6, 8), (8, 12, 16), (8, 16, 24, 32)),
        bank_units=(1, 2, 4, 8),
        max_banks=48,
        max_ops=24,
        max_units=8,
        max_bottleneck=16,
        reference_reads=(96, 192, 384),
        budget=(0.08, 1.0),
    ),
}


def space_for(input_spec: InputSpec, name: str | None = None, prior: Prior | None = None) -> Space:
    """A named space fitted to an input; without a name, by the size of the images.

    Voxels get three axes. The stem's strides grow with the image, so that a search can afford the first
    block: behind the smallest stride it works on 24 to 47 pixels along an axis below 192 pixels, on 56 at
    224. The usual strides are 1 and 2 at 32 pixels, 2 and 4 at 64, 4 and 8 from 96 on.

    Args:
        input_spec: channels and size of the images.
        name: One of :data:`SPACES`.
        prior: in place of the space's own.

    Raises:
        UsageError: no space of that name.
    """
    smallest = min(input_spec.size)
    if name is None:
        name = "edge-tiny" if smallest < 16 else "edge"
    if name not in SPACES:
        raise UsageError(f"there is no space {name!r}", expected=", ".join(SPACES), received=name)
    space = SPACES[name]
    needed = 1 if smallest < 48 else 2 if smallest < 96 else 4
    factor = needed if len(space.stem_strides) > 1 else max(1, needed // space.stem_stride)
    strides = tuple(stride * factor for stride in space.stem_strides if stride * factor <= MAX_STRIDE)
    if prior is None:
        prior = space.prior
    elif prior.sampler == "regular" and space.forms == ("reduced",):
        prior = replace(prior, forms=(("reduced", 1.0),))
    return replace(space, dims=input_spec.dims, stem_strides=strides, size=smallest, prior=prior)
