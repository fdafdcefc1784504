"""``hetmp report``."""

from pathlib import Path

import click

from hetmp.cli.command import command, option


@command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for the report; an older one there is replaced. [default: RUN/report, for "
    "several runs ./report]",
)
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Show what runs did, where their time went, and what limits them.

    RUN is the folder that 'hetmp train --out FOLDER' wrote, or its metrics.jsonl; the run may have
    ended, been cut off, or still be going. Writes report.html, a self-contained page, and its
    pictures as PNG files. Several runs are shown side by side. Runs without MPI and without torch.

    \b
    Examples:
      hetmp report runs/demo
      hetmp report runs/equal runs/planned --out compared
    """
    from rich.console import Console

    from hetmp.tools.report import read_runs, write_report
    from hetmp.tools.report.reading import metrics_file
    from hetmp.tools.report.terminal import gist

    loaded = read_runs(runs)
    if out is None:
        out = metrics_file(runs[0]).parent / "report" if len(runs) == 1 else Path("report")
    shown, page = write_report(loaded, out)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 100))
    console.print(gist(shown, loaded))
    click.echo(f"\nwrote {page} and {len(shown.pictures)} pictures (PNG) beside it")
