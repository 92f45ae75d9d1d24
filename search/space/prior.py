"""How likely each network of a space is: the distribution that is drawn from, as data beside the limits.

What is drawn decides most of what a search finds. At one latency, random networks of regular structure had
5.9 points less error than draws of the paper's sampler, whose convolutions are one time in a hundred a plain
3x3 (CIFAR-10, eight networks each). Two samplers use this:

``regular``  blocks repeat one motif, mostly plain or depthwise 3x3 with an expansion; widths grow; no kernel
             is wider than the feature map. Every number below is a probability or a share.
``paper``    the sampler of the SMASH paper and its program; it only knows the limits of the space.

Of ten draws at ResNet-8's latency on CIFAR-10 (six epochs of 12,000 images), those of 1x1 convolutions alone
had 37 and 40 % error, one behind a stem of stride 4 had 38 %, the other seven 29 to 34 %: both became rare.
Of the next ten those with 16 channels behind a stem of stride 2 had 31 to 34 %, wider ones 30 to 33 %.
Among draws near that latency one in five still had a stem of stride 4, since few others are as fast; two of
ten more had 34 and 36 %, the others 32 % on average. None is drawn now, and ten new draws had 31.9 %.

A prior never excludes: what it gives no probability stays inside the space and is reached by mutation.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from smash_base.errors import InvalidInputError, UsageError
from smash_base.json_values import JsonObject
from smash_search.space.architecture import ACTIVATIONS, ACTIVE_PATTERNS

Shares = tuple[tuple[Any, float], ...]
"""Options with their shares; they need not sum to 1."""

Form = Literal["reduced", "plain", "projected", "pointwise"]
FORMS: tuple[Form, ...] = get_args(Form)
WIRINGS = ("residual", "dense", "free")
WIDEST_KERNEL, DEEPEST = 31, 64
LARGEST_EXPANSION = 6  # of a projected op's bottleneck over what it reads (MobileNetV2), in every space


def _one_of(names: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    return " or ".join(names), lambda option: option in names


def _whole(least: int, most: int, step: int = 1) -> Callable[[Any], bool]:
    return lambda option: type(option) is int and option in range(least, most + 1, step)


OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "forms": _one_of(FORMS),
    "wirings": _one_of(WIRINGS),
    "patterns": _one_of(ACTIVE_PATTERNS),
    "activations": _one_of(ACTIVATIONS),
    "kernels": (f"odd numbers, 1 to {WIDEST_KERNEL}", _whole(1, WIDEST_KERNEL, 2)),
    "expansions": (f"whole numbers, 1 to {LARGEST_EXPANSION}", _whole(1, LARGEST_EXPANSION)),
    "depths": (f"whole numbers, 1 to {DEEPEST}", _whole(1, DEEPEST)),
    "reductions": ("more than 0, at most 1", lambda option: 0 < option <= 1),
}
"""What may be a key of each table of shares, in words and as a check."""


@dataclass(frozen=True)
class Prior:
    """Probabilities of the choices of a space.

    Attributes:
        name: "regular", "paper", or of the file that a user wrote.
        sampler: "regular" or "paper"; the second one ignores all that follows.
        stems: Chances of the stem's strides, from the smallest on.
        forms: Chances of an op: "plain" is convolutions without a 1x1; "reduced" is the paper's, a 1x1
            convolution and then others; "projected" has one at each end, with a depthwise convolution between
            them unless ``depthwise`` says otherwise; "pointwise" is the two 1x1 convolutions alone.
        wirings: Chances of a block: "residual" adds to all that it reads, "dense" writes a new bank each
            time, "free" reads and writes as the paper's sampler.
        kernels: Chances of a convolution, by size; square and undilated but for ``odd``.
        odd: probability that a convolution draws kernel and dilation as the paper's sampler does. Groups are
            those of ``depthwise``; others are reached by mutation alone.
        patterns: Chances of the convolutions of "plain" and "reduced" ops.
        depthwise: probability that a projected op convolves each channel on its own.
        expansions: Chances of a projected op's bottleneck, in multiples of what it reads.
        reductions: Chances of a reduced op's bottleneck, in shares of what it reads.
        squeeze: probability of squeeze-excitation in a projected op, and half of it in others.
        activations: Chances of all convolutions of a motif.
        repeat: probability that an op repeats the motif of its block.
        same: probability that a block has the motif of the block before.
        narrow: probability that the first block may have every width behind a stem with a stride; otherwise
            it is as many times as wide as the narrowest choice, or wider, as its map is smaller.
        growing: probability that no block is narrower than the one before.
        deepening: probability that no block is shallower than the one before.
        depths: shares of 1, 2, 3, ... ops in a block.
        keep_size: probability that a block has the resolution of the one before, where the space allows it.
    """

    name: str = "regular"
    sampler: Literal["regular", "paper"] = "regular"
    stems: tuple[float, ...] = (0.35, 0.65, 0.0)
    forms: Shares = (("plain", 0.37), ("reduced", 0.26), ("projected", 0.36), ("pointwise", 0.01))
    wirings: Shares = (("residual", 0.85), ("dense", 0.1), ("free", 0.05))
    kernels: Shares = ((3, 0.85), (5, 0.13), (7, 0.02))
    odd: float = 0.02
    patterns: Shares = (("1100", 0.45), ("1000", 0.45), ("1010", 0.04), ("1110", 0.03), ("1111", 0.03))
    depthwise: float = 0.85
    expansions: Shares = ((1, 0.1), (2, 0.3), (3, 0.25), (4, 0.2), (6, 0.15))
    reductions: Shares = ((0.25, 0.15), (0.5, 0.35), (1.0, 0.5))
    squeeze: float = 0.15
    activations: Shares = (("relu", 0.8), ("hard_swish", 0.1), ("relu6", 0.05), ("leaky_relu", 0.05))
    repeat: float = 0.9
    same: float = 0.7
    narrow: float = 0.1
    growing: float = 0.95
    deepening: float = 0.6
    depths: Shares = ((1, 0.3), (2, 0.25), (3, 0.18), (4, 0.12), (5, 0.07), (6, 0.04), (7, 0.02), (8, 0.02))
    keep_size: float = 0.05

    def __post_init__(self) -> None:
        if self.sampler not in ("regular", "paper"):
            raise InvalidInputError("prior sampler", expected="regular or paper", received=self.sampler)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "stems":
                if not isinstance(value, tuple) or not _are_shares(value):
                    raise InvalidInputError(
                        "prior stems", expected="a list of shares, one above 0", received=value
                    )
            elif isinstance(field.default, float):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or not 0 <= value <= 1:
                    raise InvalidInputError(f"prior {field.name}", expected="0 to 1", received=value)
            elif isinstance(field.default, tuple):
                self._check_shares(field.name, value)

    def _check_shares(self, name: str, shares: Any) -> None:
        if not isinstance(shares, tuple) or not shares:
            raise InvalidInputError(
                f"prior {name}", expected="a table of options and their shares", received=shares
            )
        if not _are_shares([share for _, share in shares]):
            raise InvalidInputError(
                f"prior {name}", expected="shares of 0 and more, one above 0", received=dict(shares)
            )
        words, possible = OPTIONS[name]
        for option, _ in shares:
            if not possible(option):
                raise InvalidInputError(f"prior {name}", expected=words, received=option)

    def to_json(self) -> JsonObject:
        """Plain lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Prior:
        """Read :meth:`to_json` back, or a user's table; raises InvalidInputError naming the field."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) - names:
            unknown = sorted(set(value) - names) if isinstance(value, dict) else value
            raise InvalidInputError("prior", expected=", ".join(sorted(names)), received=unknown)
        try:
            return cls(**{name: _shares(name, entry) for name, entry in value.items()})
        except (TypeError, ValueError) as error:
            raise InvalidInputError("prior has malformed fields", received=error) from None


def _shares(name: str, value: Any) -> Any:
    """A table {option: share}, or a list of pairs, as pairs; anything else as it is."""
    if isinstance(value, dict):
        number = {"kernels": int, "expansions": int, "depths": int, "reductions": float}.get(name, str)
        return tuple((number(option), float(share)) for option, share in _undotted(value))
    if name == "stems":
        return tuple(float(share) for share in value)
    if isinstance(value, list | tuple):
        return tuple((option, float(share)) for option, share in value)
    return value


def _undotted(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options and shares of a table; 0.5 as a key of TOML is the key 5 in a table of the key 0."""
    for option, share in table.items():
        decimals = share.items() if isinstance(share, dict) else ()
        yield from [(f"{option}.{digits}", value) for digits, value in decimals] or [(option, share)]


def _are_shares(values: Sequence[float]) -> bool:
    """Whether something can be drawn by them: all finite, none below 0, one above it."""
    return all(0 <= value < math.inf for value in values) and any(values)


REGULAR = Prior()
PAPER = Prior(name="paper", sampler="paper")
PRIORS = {prior.name: prior for prior in (REGULAR, PAPER)}


def prior_named(name: str) -> Prior:
    """A named prior, or one from a TOML file whose keys are the fields of :class:`Prior`.

    Raises:
        UsageError: neither a prior nor a file; InvalidInputError: the file is malformed.
    """
    if name in PRIORS:
        return PRIORS[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"there is no prior {name!r}", expected=f"{', '.join(PRIORS)}, or a TOML file", received=name
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not TOML", received=error) from None
    try:
        return Prior.from_json({"name": path.stem, **table})
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{path}: {error.what}", expected=error.expected, received=error.received
        ) from None
