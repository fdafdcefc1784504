"""``hetmp completion``."""

from collections.abc import Mapping

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from hetmp.cli.command import command
from hetmp.cli.options import Choice

_LAUNCHERS = """
_%(prog_name)s_launched() {
    local at
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [[ "${COMP_WORDS[at]##*/}" == %(prog_name)s ]]; then
            COMP_WORDS=("${COMP_WORDS[@]:at}")
            COMP_CWORD=$((COMP_CWORD - at))
            %(complete_func)s "${COMP_WORDS[0]}"
            return
        fi
    done
}

for launcher in mpirun mpiexec srun; do
    complete -p "$launcher" >/dev/null 2>&1 ||
        complete -o nosort -o default -F _%(prog_name)s_launched "$launcher"
done
unset launcher
"""
"""Bash completion of hetmp after a launcher that has no completion of its own."""


class _Bash(BashComplete):
    source_template = BashComplete.source_template + _LAUNCHERS


SHELLS: Mapping[str, type[ShellComplete]] = {
    "bash": _Bash,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@command()
@click.argument("shell", type=Choice("shell", SHELLS))
def completion(shell: str) -> None:
    """Print a script that makes a shell complete hetmp's commands.

    SHELL is bash, zsh or fish. The shell then completes commands, options, their values, the names
    of networks and data sets, and files. In bash also after mpirun, mpiexec and srun, unless
    these have a completion of their own.

    \b
    Examples:
      eval "$(hetmp completion bash)"
      hetmp completion zsh > ~/.zfunc/_hetmp
      hetmp completion fish > ~/.config/fish/completions/hetmp.fish
    """
    from hetmp.cli.program import COMPLETE, commands

    click.echo(SHELLS[shell](commands, {}, "hetmp", COMPLETE).source())
