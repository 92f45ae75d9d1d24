"""The command line: one table of commands, each in its own module, imported only when it runs.

``smash-export --help`` therefore imports neither torch nor onnx nor rich. Errors become one line on
stderr and the documented exit code; a traceback is shown with ``--debug`` (or SMASH_EXPORT_DEBUG=1)
only. Settings come from the command line, then SMASH_EXPORT_<COMMAND>_<OPTION>, then ``--config``,
then the defaults.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import gc
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import click

from smash_base.errors import SmashError
from smash_export import __version__

# name -> ("module:attribute", help). The order is the order of work and of --help.
_ESCAPED = "as JSON escapes"  # name of an error handler of codecs

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("smash_export.cli.job:command", "Images in, a verified and measured bundle out, in one command."),
    "space": ("smash_export.cli.space:command", "Show what a search space holds and costs."),
    "search": ("smash_export.cli.search:command", "Find a network for labelled images: best.json."),
    "runs": ("smash_export.cli.runs:command", "List and compare searches."),
    "reproduce": ("smash_export.cli.reproduce:command", "Repeat an experiment of the SMASH paper."),
    "freeze": ("smash_export.cli.freeze:command", "Train a network and write a verified bundle."),
    "train": ("smash_export.cli.train:command", "Train a preset or an architecture file: a bundle."),
    "adopt": ("smash_export.cli.adopt:command", "Make a bundle of a classifier that somebody else trained."),
    "compile": (
        "smash_export.cli.compile:command",
        "Make the file of one runtime and verify it on that runtime.",
    ),
    "verify": ("smash_export.cli.verify:command", "Check that every file does what the network does."),
    "bench": ("smash_export.cli.bench:command", "Latency, throughput, memory and size of every file."),
    "compare": ("smash_export.cli.compare:command", "Every file in one table and report; recommends one."),
    "predict": ("smash_export.cli.predict:command", "Classify images, folders and patterns."),
    "serve": ("smash_export.cli.serve:command", "Answer over HTTP and gRPC, with a page for people."),
    "check": ("smash_export.cli.check:command", "Would TensorRT or a DLA take this network? No GPU needed."),
    "trtexec": ("smash_export.cli.trtexec:command", "Command lines and scripts for a device with trtexec."),
    "trtexec-results": (
        "smash_export.cli.trtexec_results:command",
        "Read what trtexec measured; check its answers.",
    ),
    "bake": ("smash_export.cli.bake:command", "Preprocessing and softmax inside one ONNX file."),
    "triton": ("smash_export.cli.triton:command", "Write a model repository for Triton Inference Server."),
    "web": ("smash_export.cli.web:command", "Write a static folder that classifies in the browser."),
    "evaluate": ("smash_export.cli.evaluate:command", "Accuracy, confusion, calibration and worst errors."),
    "latency": ("smash_export.cli.latency:command", "Measure or predict latency on a device."),
    "inspect": ("smash_export.cli.inspect:command", "Say what a file or folder is."),
    "doctor": ("smash_export.cli.doctor:command", "Show what this machine can do and what is missing."),
    "targets": ("smash_export.cli.targets:command", "List the runtimes and how to get them."),
    "datasets": ("smash_export.cli.datasets:command", "List what --data reads; say what one data set holds."),
    "completion": ("smash_export.cli.completion:command", "Print the completion script of a shell."),
}

# Top-level module -> extra of pyproject.toml, for the message when an import fails; targets name their own.
EXTRA_OF_MODULE = {
    "pyarrow": "data",
    "torch": "search",
    "onnx": "search",
    "onnxscript": "search",
    "safetensors": "search",
    "sklearn": "search",
    "scipy": "search",
    "matplotlib": "search",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "grpc": "grpc",
    "google": "grpc",
    "ray": "ray",
    "optuna": "optuna",
    "mlperf_loadgen": "loadgen",
    "timm": "timm",
}

EXIT_CODES = {
    0: "done",
    1: "internal error, or a full disk",
    2: "usage",
    3: "runtime or device missing",
    4: "verification failed",
    5: "accuracy or latency gate failed",
    6: "unsafe or invalid input",
    130: "interrupted",
    141: "whoever read the output has left",
}

_READER_LEFT = 141  # what shells say of a program that SIGPIPE ended

RESUMING = {"run", "search", "freeze", "train", "reproduce", "latency"}
"""Commands that go on where they were interrupted when they are given again."""

# What a path can be refused for by the system: the user's path, not a defect of ours.
_UNUSABLE_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class LazyGroup(click.Group):
    """A click group that knows names and help lines, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            suggestion = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items()])


def _load_config(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        from smash_export.cli.config import load_config

        ctx.default_map = load_config(value, ctx)


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "SMASH_EXPORT"})
@click.version_option(__version__, prog_name="smash-export", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback with an error.")
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="TOML file with one table per command, for example smash.toml.",
)
def cli() -> None:
    """Search a network that fits your device, freeze it, compile it, prove it, serve it.

    Every command takes --help and --json; commands that write take --dry-run.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with the documented exit code."""
    codecs.register_error(_ESCAPED, _escaped)
    # Closed before the process began (">&-"): no stream at all, and the next file that is opened would take
    # its number, so that what a runtime's own code prints went into that file.
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)
    code = _flushed(run(arguments))
    gc.freeze()  # all that lives now lives to the end; a last look through PyTorch takes half a second
    sys.exit(code)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What JSON writes for characters that a stream cannot: names of files may hold bytes of no encoding,
    and a terminal another one than UTF-8.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import json

    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _flushed(code: int) -> int:
    """The exit code after everything was written; what cannot be is dropped, else Python tries again at the
    end and leaves with a code of its own.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or (_READER_LEFT if error.errno == errno.EPIPE else 1)
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Before any library starts threads: spinning ones waste ten times the work on a machine that others use
    # too (measured: 3.9 s for a step of 0.35 s, two busy cores), and lose nothing that can be measured alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in words or os.environ.get("SMASH_EXPORT_DEBUG", "") not in ("", "0")
    try:
        result: Any = cli.main(words, prog_name="smash-export", standalone_mode=False)
        return result if type(result) is int else 0  # an exit code, of --help or of the command itself
    except click.ClickException as error:  # click's own usage errors: the usage line and a hint
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):  # Abort: how click passes on Ctrl-C and the end of the input
        # CPython remembers that Ctrl-C met an exec() and ends "python -m" by that signal, whoever caught it;
        # the next exec() forgets it. Imports are full of them: every dataclass is one.
        exec("")
        go_on = "repeat the command to go on" if _command_of(words) in RESUMING else None
        return _fail(f"interrupted; {go_on or 'whatever was complete before is untouched'}", 130, debug)
    except SystemExit as end:  # of click and rich: a completion (0), or "| head" has seen enough (1)
        return _READER_LEFT if end.code else 0
    except SmashError as error:
        return _fail(str(error), error.exit_code, debug)
    except OSError as error:
        place = f" while writing {error.filename}" if error.filename else ""
        if error.errno == errno.EFBIG:
            line = f"a file became larger than its file system or ulimit -f allows{place}"
            return _fail(f"{line}; earlier results are untouched.", 1, debug)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"disk full{place}; earlier results are untouched. Free some space.", 1, debug)
        if "No usable temporary directory" in str(
            error.strerror
        ):  # of Python, after it tried to write in all
            line = "no folder for temporary files can be written: the disk is full, or read-only"
            return _fail(f"{line}. Free some space, or name another folder: TMPDIR=FOLDER", 1, debug)
        if error.errno in _UNUSABLE_PATH and error.filename:
            return _fail(f"{error.filename} cannot be used: {error.strerror}", 6, debug)
        return _internal(error, debug)
    except MemoryError:
        return _fail(
            "out of memory; earlier results are untouched. Use a smaller batch or network.", 1, debug
        )
    except ModuleNotFoundError as error:
        extra = _extra_of((error.name or "").partition(".")[0])
        if extra is None:
            return _internal(error, debug)
        line = f"this needs the package {error.name}. Install it: pip install 'smash-export[{extra}]'"
        return _fail(line, 3, debug)
    except Exception as error:  # noqa: BLE001 - the last net: a defect of ours, reported as such
        return _internal(error, debug)


def _command_of(words: Sequence[str]) -> str:
    """Name of the command; later words are its own, and may be a file that is called "run"."""
    return next((word for word in words if word in COMMANDS), "")


def _extra_of(module: str) -> str | None:
    from smash_targets.listing import described_targets

    of_targets = {name: target.extra for target in described_targets() for name in target.modules}
    return EXTRA_OF_MODULE.get(module) or of_targets.get(module)


def _internal(error: Exception, debug: bool) -> int:
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(
        f"internal error, {line[:300]}. Please report it with the output of the same command and --debug",
        1,
        debug,
    )


def _fail(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"smash-export: {line}", err=True)
    return code
