"""What a data set holds, told before anything is trained on it: one function, one result, text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from smash_base.images import Omission
from smash_base.json_values import JsonObject
from smash_search.data.dataset import Dataset, Split, chunks
from smash_search.data.duplicates import Duplicates, duplicates_of

HASHED_BYTES = 2**31  # of pixels; larger data are not searched for duplicates
SHOWN_CLASSES = 20
FEW_IMAGES = 20  # training images of a class below which the summary warns
REPEATED = 0.01  # of the validation and test images, above which copies of others are worth a note


@dataclass(frozen=True)
class ClassCount:
    """Images of one class in each split."""

    name: str
    train: int
    validation: int
    test: int

    @property
    def total(self) -> int:
        """In all splits together."""
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class DatasetSummary:
    """See :func:`summarise`.

    Attributes:
        spec: what was read.
        images: in all splits.
        splits: images by split.
        classes: in the order of the labels.
        height, width, channels: Size of one stored image; depth: planes of a volume, or None.
        duplicates: None where the data are too large to look.
        left_out: what the reader did not use, by reason.
        notes: how the files were understood, and what to look at.
        fingerprint: see :class:`Dataset`.
    """

    spec: str
    images: int
    splits: dict[str, int]
    classes: tuple[ClassCount, ...]
    height: int
    width: int
    channels: int
    depth: int | None
    duplicates: Duplicates | None
    left_out: tuple[Omission, ...]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def omitted(self) -> int:
        """Files and folders that were left out."""
        return sum(omission.count for omission in self.left_out)

    def facts(self) -> dict[str, str]:
        """In words, by name, for a table."""
        size = f"{self.width}x{self.height}" + (f"x{self.depth}" if self.depth else "")
        facts = {
            "images": f"{self.images:,}",
            "splits": ", ".join(f"{name} {count:,}" for name, count in self.splits.items()),
            "size": f"{size}, {self.channels} channel{'s' * (self.channels > 1)}",
            "classes": f"{len(self.classes)}: {self._listed()}",
            "duplicates": "not looked for in data this large",
        }
        if self.duplicates is not None:
            facts["duplicates"] = str(self.duplicates)
        facts["left out"] = "; ".join(map(str, self.left_out)) or "nothing"
        return facts | ({"notes": "; ".join(self.notes)} if self.notes else {})

    def _listed(self) -> str:
        listed = ", ".join(f"{item.name} {item.total:,}" for item in self.classes[:SHOWN_CLASSES])
        more = len(self.classes) - SHOWN_CLASSES
        return listed + (f" and {more} more" if more > 0 else "")

    def to_json(self) -> JsonObject:
        """JSON values."""
        return {
            **asdict(self),
            "classes": [{**asdict(item), "total": item.total} for item in self.classes],
            "left_out": [omission.to_json() for omission in self.left_out],
            "notes": list(self.notes),
            "omitted": self.omitted,
        }


def summarise(dataset: Dataset) -> DatasetSummary:
    """Images, classes with their counts, size, splits, duplicates, and what was left out."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    classes = len(dataset.classes)
    counts = {name: split.images_of_each(classes) for name, split in splits.items()}
    table = tuple(
        ClassCount(name, *(int(counts[split][label]) for split in splits))
        for label, name in enumerate(dataset.classes)
    )
    pixels = sum(split.images.nbytes for split in splits.values())
    is_looked_at = pixels <= HASHED_BYTES
    duplicates = duplicates_of(splits) if is_looked_at else None
    blank = sum(map(_of_one_colour, splits.values())) if is_looked_at else 0
    form = dataset.preprocessing
    return DatasetSummary(
        spec=dataset.spec,
        images=sum(map(len, splits.values())),
        splits={name: len(split) for name, split in splits.items()},
        classes=table,
        height=form.height,
        width=form.width,
        channels=form.channels,
        depth=form.depth,
        duplicates=duplicates,
        left_out=dataset.left_out,
        notes=(*dataset.notes, *_of_none(splits), *_blank(blank), *_warnings(table, duplicates, splits)),
        fingerprint=dataset.fingerprint,
    )


def _of_none(splits: dict[str, Split]) -> Iterator[str]:
    """How many images are of no class, where classes do not exclude each other."""
    counts = {name: int(split.of_no_class.sum()) for name, split in splits.items()}
    if any(counts.values()):
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        yield f"images of no class: {listed}"


def _of_one_colour(split: Split) -> int:
    """How many images have the same colour, or grey, in all pixels."""
    count = 0
    for rows in chunks(split.images):
        pixels = rows.reshape(len(rows), -1, rows.shape[-1])
        count += int((pixels == pixels[:, :1]).all((1, 2)).sum())
    return count


def _blank(count: int) -> Iterator[str]:
    if count:
        yield f"{count} images show one colour alone; dark drawings on transparency do, which is put on black"


def _warnings(
    classes: tuple[ClassCount, ...], duplicates: Duplicates | None, splits: dict[str, Split]
) -> Iterator[str]:
    scarce = [item for item in classes if item.train < FEW_IMAGES]
    if scarce:
        names = ", ".join(f"{item.name} {item.train}" for item in scarce[:5])
        yield f"{len(scarce)} classes have fewer than {FEW_IMAGES} training images: {names}"
    missing = [item.name for item in classes if not item.test]
    if missing:
        yield f"{len(missing)} classes have no test image: {', '.join(missing[:5])}"
    if duplicates and duplicates.class_pairs:
        named = [*(item.name for item in classes), "no class"]
        pairs = (" and ".join(named[label] for label in pair) for pair in duplicates.class_pairs[:3])
        why = "no network can learn both"
        if splits["train"].targets is not None:
            why = "name all classes of an image in one place"
        yield f"the same image stands in different classes ({', '.join(pairs)}): {why}"
    judged = len(splits["validation"]) + len(splits["test"])
    if duplicates and duplicates.across_splits > REPEATED * judged:
        yield f"{duplicates.across_splits} of {judged} validation and test images stand in another split too"
    if duplicates and (duplicates.near or 0) > REPEATED * judged:
        yield f"{duplicates.near} of {judged} validation and test images look like a training image"
