"""What commands that read images say about them, and the option to go on without bad files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smash_export.progress import Output

if TYPE_CHECKING:
    from smash_search.data import Dataset, DatasetSummary

Function = TypeVar("Function", bound=Callable[..., Any])


def skip_bad_option(function: Function) -> Function:
    """``--skip-bad``; the command gets ``skip_bad`` and makes ``--data`` of it with :func:`data_words`."""
    text = "Leave out images that cannot be read; as ?skip-bad=yes."
    return click.option("--skip-bad", is_flag=True, help=text)(function)


def data_words(spec: str, skip_bad: bool) -> str:
    """The specification with what the option adds to it."""
    from smash_search.data import with_option

    return with_option(spec, "skip-bad", "yes") if skip_bad else spec


def tell_images(output: Output, dataset: Dataset) -> DatasetSummary:
    """Show what a data set holds before anything is trained on it."""
    from smash_search.data import summarise

    with output.progress("looking for duplicates", None):
        summary = summarise(dataset)
    output.table("Images", ["what", "value"], list(map(list, summary.facts().items())))
    return summary
