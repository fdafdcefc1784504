"""``hetmp doctor``."""

import click

from hetmp.cli.command import command, option


@command()
@option("--srun-mpi", is_flag=True, help="Print only the value for srun --mpi= here, for scripts.")
def doctor(srun_mpi: bool) -> None:
    """Check that ranks can work together: MPI, torch, HDF5, devices.

    Started alone, it checks this machine; with mpirun or srun, also the ranks. Prints a line per
    check, with a remedy if it fails; exits with 1 if one fails.

    \b
    Examples:
      hetmp doctor
      mpirun -n 3 hetmp doctor
      srun --mpi=$(hetmp doctor --srun-mpi) -n 3 hetmp doctor
    """
    if srun_mpi:
        from hetmp.cluster import mpi_vendor
        from hetmp.cluster.slurm import chosen_mpi_type

        click.echo(chosen_mpi_type(mpi_vendor()))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hetmp.tools.doctor import examine

    findings = examine()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(
            "[red]off[/]" if finding.remedy else "[green]ok[/]",
            finding.what,
            escape(finding.result),
        )
        if finding.remedy:
            table.add_row("", "", f"remedy: {escape(finding.remedy)}")
    Console().print(table)
    if any(finding.remedy for finding in findings):
        raise SystemExit(1)
