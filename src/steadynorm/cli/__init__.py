"""The command line."""

from __future__ import annotations

try:
    import click
    import rich  # noqa: F401 (the commands need it)
except ImportError as error:
    raise SystemExit(
        f"steadynorm: the command line needs optional packages ({error.name}): pip install 'steadynorm[study]'"
    ) from error

from .. import __version__, runtime
from ..errors import SteadynormError
from ..study.environment import environment
from .benchmarks import bench
from .failing import fail
from .models import fold, recalibrate
from .studies import compare, report_command, study


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, invoke_without_command=True
)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Batch normalization for PyTorch: evidence and tools."""
    if context.invoked_subcommand != "bench":  # which asks --default-allocator
        runtime.keep_freed_memory()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
def env() -> None:
    """Say what steadynorm runs on here: versions, processor, threads, memory, compiled kernels."""
    found = {**environment(), **runtime.report()}
    width = max(map(len, found))
    for name, value in found.items():
        click.echo(f"{name:<{width}}  {value}")


for command in (study, compare, report_command, bench, recalibrate, fold):
    cli.add_command(command)


def main() -> None:
    """Runs the command line: one line on stderr and exit code 2 for bad input, 130 after Ctrl-C."""
    try:
        cli.main(prog_name="steadynorm", standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except SteadynormError as error:
        fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", 130)
