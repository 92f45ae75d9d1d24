"""``smash-export run``: from labelled images to a verified, measured bundle and one page."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smash_base.errors import UsageError, VerificationError
from smash_base.json_values import JsonObject
from smash_export.cli.console import Output, common_options
from smash_export.cli.device import NAMES, device_of, device_options, given_words
from smash_export.cli.freeze import AUGMENT_HELP, taught_and_measured
from smash_export.cli.freeze import command as freeze_command
from smash_export.cli.groups import Grouped
from smash_export.cli.images import data_words, skip_bad_option
from smash_export.cli.shared_options import balance_option, cost_limits, recipe_option
from smash_export.cli.space import space_option
from smash_export.cli.training_options import chosen_recipe
from smash_targets.base import target_names

if TYPE_CHECKING:
    from smash_export.device_search.job.plan import Plan, Request
    from smash_export.device_search.job.stages import Job
    from smash_search.data import Dataset
    from smash_search.train.recipes import Recipe


PLANNED = ("search", "freeze")  # commands of a run whose sizes fit its time
GROUPS = {
    "Images and run": ("data", "skip_bad", "duration", "out", "seed"),
    "Network": ("space", "max_latency", "max_parameters", "max_macs", "max_memory"),
    "Training": ("recipe", "balance", "teacher", "folds", "settings", "augment", "false_alarm"),
    "Target": ("target", "precision"),
    "This machine": ("device",),
    "Device": NAMES,
}


@click.command(cls=Grouped, groups=GROUPS)
@click.option("--data", required=True, metavar="NAME[:PATH]", help="Images; see: smash-export datasets")
@skip_bad_option
@click.option("--max-latency", metavar="TIME", help="Limit on measured latency of one image, such as 2ms.")
@cost_limits
@click.option(
    "--target",
    type=click.Choice(target_names()),
    default="onnxruntime",
    show_default=True,
    help="Runtime that the network is for.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of the deployed file; fp32 is compiled beside it.",
)
@click.option(
    "--time", "duration", metavar="TIME", help="Time budget of the whole run, such as 45m or 1h30m."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run.  [default: photos-run for folder:photos]",
)
@space_option
@recipe_option("Recipe of the last training: docs/recipes.md.")
@balance_option
@taught_and_measured("last training")
@click.option("--augment", metavar="NAME=VALUE,...", help=AUGMENT_HELP)
@click.option(
    "--false-alarm",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="RATE",
    help="Share of images of the classes that may be called doubtful.  [0.05]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the whole run."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda: where to train.")
@device_options
@common_options(writes=True, trains=True)
def command(
    data: str,
    skip_bad: bool,
    out: Path | None,
    duration: str | None,
    output: Output,
    **values: Any,
) -> int:
    """Search, freeze, compile, verify, measure and compare: images in, a bundle and one page out.

    Says first what the images are, what will be searched and how long each stage takes here, from a few
    measured steps. Every stage is a command of its own; the same command again goes on after an
    interruption. Where the int8 file does not do what the network does, here or on the device, the others are
    measured all the same, and the exit code is 4.
    """
    from smash_base import files
    from smash_export.device_search.job.plan import Plan, Request, make_plan
    from smash_export.device_search.job.stages import Job
    from smash_export.device_search.plan import parse_duration
    from smash_export.device_search.search import load_data
    from smash_search.data import folder_name, summarise

    begin, data = time.monotonic(), data_words(data, skip_bad)
    elsewhere = _elsewhere(values)
    seconds = parse_duration(duration) if duration else None
    request = Request(data, seconds=seconds, elsewhere=elsewhere, **values)
    with output.job("reading and measuring"):
        request.check()
        with output.progress("reading images", None):
            dataset = load_data(data)
        summary = summarise(dataset)
        folder = out or Path(f"{folder_name(dataset)}-run")
        _check_outside(folder, dataset)
        job = Job.find(folder, request, dataset.fingerprint)
        plan = job.plan if job else None
        if plan is None:
            recipe = _last_recipe(request, dataset)
            plan = make_plan(request, dataset, summary, folder, output, recipe, begin)
    _tell(output, plan, folder, job)
    if output.dry_run:
        images = summary.to_json()
        output.result({"dry_run": True, "writes": str(folder), **plan.to_json(), "data": images})
        return 0
    with files.exclusive(folder, purpose="run"):
        job = Job.find(folder, request, dataset.fingerprint)
        job = job or Job(folder, request, Plan.from_json(plan.to_json()), [], dataset.fingerprint)
        return _do(output, job, dataset)


def _check_outside(folder: Path, dataset: Dataset) -> None:
    """Raise UsageError where the run would lie among the images, of which it would be one more class."""
    from smash_search.data.spec import parse_spec

    spec = parse_spec(dataset.spec)
    if spec.name == "folder" and spec.path and folder.resolve().is_relative_to(Path(spec.path).resolve()):
        raise UsageError(
            f"the run's folder {folder} lies among the images",
            expected="a folder beside them",
            hint="Choose one: --out ../NAME.",
        )


def _last_recipe(request: Request, dataset: Dataset) -> Recipe:
    """The recipe that ``freeze`` will choose; raises UsageError for what it would refuse, hours before it."""
    from smash_export.device_search.job.plan import training_words
    from smash_export.export import teacher

    words = ["--arch", "best.json", "--seed", str(request.seed), *training_words(request)]
    recipe = chosen_recipe(dataset, freeze_command.make_context("freeze", words).params)
    if request.teacher is not None and request.teacher != teacher.AUTO:
        teacher.check_there(request.teacher)
    return recipe


def _elsewhere(values: dict[str, Any]) -> tuple[str, ...]:
    """Options that name another device, for the commands of the stages; it must answer before all else."""
    from smash_export.remote.device import ReachedDevice

    context = click.get_current_context()
    others = {parameter.name or "" for parameter in context.command.params} - set(NAMES)
    words = tuple(given_words(context, without=others))
    device = device_of(values)
    if isinstance(device, ReachedDevice):
        device.check()
    return words


def _tell(output: Output, plan: Plan, folder: Path, job: Job | None) -> None:
    from smash_export.device_search.job.stages import command_line
    from smash_export.device_search.plan import duration_words

    output.table("Images", ["what", "value"], list(map(list, plan.images.items())))
    output.table("Search", ["what", "value"], list(map(list, plan.searched.items())))
    done = len(job.done) if job else 0
    rows: list[list[object]] = [
        [stage.name, "done" if index < done else duration_words(stage.seconds)]
        for index, stage in enumerate(plan.stages)
    ]
    left = sum(stage.seconds for stage in plan.stages[done:])
    output.table(f"{folder}: about {duration_words(left)}", ["stage", "time"], rows)
    for stage in plan.stages[done:]:
        output.text(command_line(stage))  # no cell of a table: what is folded there cannot be pasted


def _do(output: Output, job: Job, dataset: Dataset) -> int:
    """Every stage that is missing, and the page; 4 where a file was rejected."""
    from smash_base import files
    from smash_export.device_search.job.outcomes import Compared
    from smash_export.device_search.job.page import job_page
    from smash_export.device_search.job.stages import told

    job.save()
    with output.job("run", job.parts):
        for done in job.stages(partial(run_command, quiet=output.quiet)):
            output.note(told(done))
    page = job.folder / "report.html"
    files.write_text(page, job_page(job, dataset))
    advice = job.outcome("compare", Compared).recommendation
    output.text(f"bundle: {job.folder / 'bundle'}")
    if advice is not None:
        output.text(f"use {advice.target} {advice.precision}: {advice.reason}")
    output.text(f"report: {page}")
    for done in job.rejected:
        output.warn(told(done))
    output.result(
        {
            "bundle": str(job.folder / "bundle"),
            "report": str(page),
            "rejected": [done.stage.name for done in job.rejected],
            "recommendation": None if advice is None else asdict(advice),
            "expected_seconds": round(job.plan.seconds, 1),
            "seconds": round(sum(done.seconds for done in job.done), 1),
            "stages": [done.to_json() for done in job.done],
        }
    )
    return VerificationError.exit_code if job.rejected else 0


def run_command(words: Sequence[str], *, quiet: bool = False) -> JsonObject:
    """Run a command of this program in this process and return its JSON; its errors pass through.

    Those whose sizes a plan decides have no settings but their words: neither of the environment nor of the
    file that it names.

    Args:
        words: the command and its options.
        quiet: without notes and progress.
    """
    from smash_export.cli import cli

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        cli.main(
            [*words, "--json", *["--quiet"] * quiet],
            prog_name="smash-export",
            standalone_mode=False,
            auto_envvar_prefix=None if words[0] in PLANNED else "SMASH_EXPORT",
        )
    result: JsonObject = json.loads(text.getvalue())
    return result
