"""``vnic demo``: three guests, a switch and, with root, the kernel's own IP stack behind a tap."""

from __future__ import annotations

import json

import click


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="Measure rates for this long, all pairs together.",
)
def demo(as_json: bool, seconds: float) -> None:
    """Run guests of software on an embedded switch, and show what crosses it.

    Needs neither root nor a VMM; with root there is also a tap, in a network namespace of its
    own.  Exits with 1 if anything fell short, and says what.
    """
    # Here, not above: these load kernels, which no other command's start has to wait for.
    from vnic.cli.demo.report import Progress, print_report
    from vnic.cli.demo.scenario import run

    with Progress(quiet=as_json) as progress:
        report = run(seconds, progress.step)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report)
    for line in report.failures:
        click.echo(f"vnic: fell short: {line}", err=True)
    if report.failures:
        raise SystemExit(1)
