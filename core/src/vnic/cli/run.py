"""``vnic run``: the NICs and patches of a file, on one loop."""

from __future__ import annotations

from pathlib import Path

import click

from vnic.cli.hosting import host, hosting_options
from vnic.config import did_you_mean, load_toml
from vnic.errors import ConfigError
from vnic.registry import Registry


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@hosting_options
def run(file: Path, as_json: bool, stats: float | None) -> None:
    """Run all NICs and patches of a TOML FILE in this process.

    If one can't be opened, none is.  Ends with code 0 on SIGINT or SIGTERM.
    """
    registry = Registry()
    servers = registry.prefixes("servers")
    config = load_toml(file, servers)
    wanted = " or ".join(servers) or "an installed server, such as vnic-vhost-user"
    lost = [
        f"{nic.where}: no server; add a key for one: {wanted}"
        + next(filter(None, (did_you_mean(key, servers) for key in nic.options)), "")
        for nic in config.nics
        if nic.server is None
    ]
    if lost:
        raise ConfigError("\n".join(lost))
    host(config, registry, as_json=as_json, stats_s=stats)
