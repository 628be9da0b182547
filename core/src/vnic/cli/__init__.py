"""The ``vnic`` command: list what is installed, serve one NIC, run a file of them, demo."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import click

import vnic
from vnic.cli.demo import demo
from vnic.cli.list import list_plugins
from vnic.cli.run import run
from vnic.cli.serve import serve
from vnic.errors import VnicError

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")


class _Main(click.Group):
    """Turns an error that somebody is to blame for into words and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VnicError as error:
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                traceback.print_exc()
            for line in str(error).splitlines():
                click.echo(f"vnic: {line}", err=True)
            ctx.exit(2)


def _set_verbosity(ctx: click.Context, _parameter: click.Parameter, count: int) -> int:
    """Count the -v before and after the command's name together."""
    total: int = ctx.meta.get(__name__, 0) + count
    ctx.meta[__name__] = total
    level = {0: logging.WARNING, 1: logging.INFO}.get(total, logging.DEBUG)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(level)
    return total


def _verbose(command: _F) -> _F:
    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Tell what happens; -vv tells all.",
    )(command)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vnic.__version__, prog_name="vnic")
@_verbose
def main() -> None:
    """Virtual NICs: any frontend on any backend, served to any VMM."""


for _command in (list_plugins, serve, run, demo):
    main.add_command(_verbose(_command))
