"""`faas completion bash|zsh|fish`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell. Names of functions and images are completed from the
    server.

    \b
    bash:  eval "$(faas completion bash)"        in ~/.bashrc
    zsh:   eval "$(faas completion zsh)"         in ~/.zshrc
    fish:  faas completion fish | source         in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click offers all three"
    click.echo(kind(ctx.find_root().command, {}, "faas", "_FAAS_COMPLETE").source())
