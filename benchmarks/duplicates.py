"""Near copies across splits: how many of them are found, and how many images are taken for one by chance.

    python -m benchmarks.duplicates --data cifar10:DIR

Found: training images that are encoded as JPEG, resized, brightened or cropped are looked for among all
training images. By chance: test images are mirrored, which hardly any copy is and which changes nothing that
images have in common; what is found for them is no copy, or a mirrored or symmetric one. People found 286 of
the 10,000 test images of CIFAR-10 in training, most of them moved or cropped (ciFAIR, Barz and Denzler 2020,
1902.00423).
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.record import record
from smash_search.data import load_dataset
from smash_search.data.duplicates import Pictures

COPIES = 2000
Change = Callable[[Image.Image], Image.Image]


def encoded(quality: int) -> Change:
    """JPEG and back."""

    def change(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB")

    return change


def resized(pixels: int) -> Change:
    """Smaller by some pixels and back."""

    def change(image: Image.Image) -> Image.Image:
        side = image.width - pixels
        return image.resize((side, side), Image.Resampling.BICUBIC).resize(image.size)

    return change


def cropped(pixels: int) -> Change:
    """Without some rows and columns, and back to the old size."""

    def change(image: Image.Image) -> Image.Image:
        return image.crop((pixels, pixels, *image.size)).resize(image.size, Image.Resampling.BICUBIC)

    return change


def brightened(factor: float) -> Change:
    """Brighter by a factor."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Change] = {
    "JPEG of quality 90": encoded(90),
    "JPEG of quality 75": encoded(75),
    "JPEG of quality 50": encoded(50),
    "smaller by a pixel and back": resized(1),
    "smaller by a quarter and back": resized(8),
    "brighter by a tenth": brightened(1.1),
    "cropped by a pixel": cropped(1),
    "cropped by two pixels": cropped(2),
}
WANTED = ("JPEG of quality 75", "smaller by a pixel and back", "brighter by a tenth")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data)
    known = np.concatenate([dataset.train.images, dataset.validation.images])
    test = np.asarray(dataset.test.images)
    begin = time.process_time()
    pictures = Pictures(known)
    found = pictures.holds(test)
    seconds = time.process_time() - begin
    by_chance = pictures.holds(test[:, :, ::-1])
    originals = known[np.random.default_rng(0).permutation(len(known))[:COPIES]]
    shares = {}
    for name, change in CHANGES.items():
        copies = np.stack([np.asarray(change(Image.fromarray(image))) for image in originals])
        shares[name] = float(pictures.holds(copies).mean())
    results = {
        "images": {"known": len(known), "test": len(test)},
        "cpu_seconds": seconds,
        "found_in_test": int(found.sum()),
        "found_mirrored": int(by_chance.sum()),
        "copies_found": shares,
    }
    worst = min(shares[name] for name in WANTED)
    record(
        "duplicates",
        results,
        [
            {
                "what": f"copies of images of {dataset.name} that are found, the worst of three changes",
                "goal": ">= 95 %",
                "value": f"{worst:.1%}",
                "met": worst >= 0.95,
                "note": f"of {COPIES:,}; {', '.join(WANTED)}",
            },
            {
                "what": f"mirrored test images of {dataset.name} that are taken for a copy",
                "goal": "<= 0.3 %",
                "value": f"{by_chance.mean():.2%}",
                "met": bool(by_chance.mean() <= 0.003),
                "note": f"{by_chance.sum()} of {len(test):,}; as they are: {found.sum()}, in {seconds:.1f} s",
            },
        ],
    )


if __name__ == "__main__":
    main()
