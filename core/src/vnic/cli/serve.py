"""``vnic serve``: one NIC, shown to one VMM."""

from __future__ import annotations

import re
from typing import Any, Final

import attrs
import click

from vnic.cli.hosting import host, hosting_options
from vnic.config import RunConfig, ServerConfig, parse_nic
from vnic.errors import ConfigError
from vnic.registry import Registry

_PARAMETER: Final = "server_"
"""Begins the names of the parameters that stand for servers."""

_TAKEN: Final = ("client", "help", "json", "stats", "verbose")


class _ServeCommand(click.Command):
    """Has an option for each server that is installed, ``--vhost-user PATH``; imports none."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *(_option(prefix) for prefix in _servers(Registry()))]


def _servers(registry: Registry) -> list[str]:
    """Return the prefixes that can be options: what isn't one word, or is taken, can't."""
    return [
        prefix
        for prefix in registry.prefixes("servers")
        if re.fullmatch(r"[a-z][a-z0-9-]*", prefix) and prefix not in _TAKEN
    ]


def _option(prefix: str) -> click.Option:
    name = _PARAMETER + prefix.replace("-", "_")
    return click.Option([name, f"--{prefix}"], metavar="PATH", help=f"Serve over {prefix} at PATH.")


@click.command("serve", cls=_ServeCommand)
@click.argument("spec")
@click.option("--client", is_flag=True, help="Connect to PATH, where the VMM listens.")
@hosting_options
def serve(spec: str, client: bool, as_json: bool, stats: float | None, **servers: Any) -> None:
    """Serve one NIC: vnic serve virtio-net,tap0,mtu=9000 --vhost-user PATH.

    SPEC is FRONTEND,BACKEND[,KEY=VALUE...]; name=, filter= and type= are the NIC's own keys.
    Ends with code 0 on SIGINT or SIGTERM.
    """
    registry = Registry()
    config = parse_nic(spec)
    options: dict[str, object] = {"mode": "client"} if client else {}
    chosen = [
        ServerConfig(prefix=prefix, options={"path": path} | options)
        for prefix in _servers(registry)
        if (path := servers.get(_PARAMETER + prefix.replace("-", "_"))) is not None
    ]
    if len(chosen) != 1:
        raise ConfigError(f"{config.name}: {_which(_servers(registry), len(chosen))}")
    nic = attrs.evolve(config, server=chosen[0])
    host(RunConfig(nics=(nic,)), registry, as_json=as_json, stats_s=stats)


def _which(servers: list[str], n_chosen: int) -> str:
    flags = [f"--{prefix} PATH" for prefix in servers]
    if not flags:
        return "nothing to serve it with; install a server, such as vnic-vhost-user"
    if n_chosen:
        return f"{n_chosen} servers are asked for; keep one of {', '.join(flags)}"
    return f"nothing says how to serve it; add {' or '.join(flags)}"
