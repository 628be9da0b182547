"""``vnic list``: the plugins that are installed, without importing any."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from vnic.registry import GROUPS, Entry, Registry

if TYPE_CHECKING:
    from rich.table import Table


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.option("--check", is_flag=True, help="Import each, in a process of its own.")
def list_plugins(as_json: bool, check: bool) -> None:
    """List the plugins that are installed.

    With --check, exits with 1 if one can't be loaded, and says why.
    """
    registry = Registry()
    entries = registry.entries()
    wrong = {entry: registry.check(entry) for entry in entries} if check else {}
    clashes = {
        entry: [other.distribution for other in registry.clashes(entry)] for entry in entries
    }
    if as_json:
        rows = [_row(entry, clashes[entry], wrong, check) for entry in entries]
        click.echo(json.dumps(rows, indent=2))
    elif entries:
        _print(_table(entries, clashes, wrong, check))
        for problem in filter(None, wrong.values()):
            click.echo(problem)
    else:
        click.echo("no plugins are installed; pip install some: vnic-virtio-net, vnic-tap, ...")
    if any(wrong.values()):
        raise SystemExit(1)


def _row(
    entry: Entry, clashes: list[str], wrong: dict[Entry, str | None], check: bool
) -> dict[str, object]:
    row: dict[str, object] = {
        "group": entry.group,
        "prefix": entry.prefix,
        "distribution": entry.distribution,
        "version": entry.version,
        "value": entry.value,
        "also_claimed_by": clashes,
    }
    return row | {"error": wrong[entry]} if check else row


def _table(
    entries: list[Entry],
    clashes: dict[Entry, list[str]],
    wrong: dict[Entry, str | None],
    check: bool,
) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("KIND", "PREFIX", "DISTRIBUTION", "VERSION", ""):
        table.add_column(title, no_wrap=True)
    for entry in entries:
        notes = []
        if check:
            notes.append("can't be loaded" if wrong[entry] else "loads")
        if clashes[entry]:
            notes.append(f"also claimed by {', '.join(clashes[entry])}")
        table.add_row(
            GROUPS[entry.group], entry.prefix, entry.distribution, entry.version, "; ".join(notes)
        )
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file or a program gets whole lines
        console.width = max(console.width, 400)
    console.print(table)
