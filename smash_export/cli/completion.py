"""``smash-export completion SHELL``: the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from smash_export.cli.console import Output, common_options


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options(writes=False)
def command(shell: str, output: Output) -> None:
    """Print the completion script of a shell.

    \b
    bash:  smash-export completion bash >> ~/.bashrc
    zsh:   smash-export completion zsh >> ~/.zshrc
    fish:  smash-export completion fish > ~/.config/fish/completions/smash-export.fish
    """
    from smash_export.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None  # the three of click.Choice
    script = kind(cli, {}, "smash-export", "_SMASH_EXPORT_COMPLETE").source()
    output.text(script)
    output.result({"shell": shell, "script": script})
