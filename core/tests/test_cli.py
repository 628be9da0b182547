"""The commands: what they print, what they refuse, how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import vnic
from click.testing import CliRunner, Result
from vnic.cli import main

Install = Callable[..., Path]

GOOD = """
    from vnic import hookimpl
    from vnic.config import choice, mac, mtu, path
    from vnic.errors import BackendError
    import attrs, os, signal

    @attrs.frozen(kw_only=True)
    class BackOptions:
        mtu: int = attrs.field(default=1500, converter=mtu)

    class Back:
        Options = BackOptions
        @hookimpl
        def init(self, name, options, link):
            if name.endswith("busy"): raise BackendError(f"{name}: in use; stop the other")
            if name.endswith("stop"): os.kill(os.getpid(), signal.SIGTERM)
        @hookimpl
        def cleanup(self): pass
        @hookimpl
        def send(self, burst): return len(burst)
        @hookimpl
        def recv(self, room): return 0

    @attrs.frozen(kw_only=True)
    class FrontOptions:
        mac: object = attrs.field(default=None, converter=attrs.converters.optional(mac))

    class Front:
        Options = FrontOptions
        @hookimpl
        def init(self, options, link, host): pass
        @hookimpl
        def cleanup(self): pass
        @hookimpl
        def reset(self, kind): pass
        @hookimpl
        def transmit(self): pass
        @hookimpl
        def receive(self): pass
        @hookimpl
        def link_changed(self, up): pass

    @attrs.frozen(kw_only=True)
    class PipeOptions:
        path: object = attrs.field(converter=path)
        mode: str = attrs.field(default="server", converter=choice("server", "client"))

    class Pipe:
        Options = PipeOptions
        memory = None

        def __init__(self, options, loop):
            self.options, self.loop, self.made = options, loop, False

        def serve(self, nic):
            try:
                self.options.path.open("x").close()
            except OSError as error:
                raise BackendError(f"{self.options.path}: {error.strerror}; remove it") from error
            self.made = True

        def close(self):
            if self.made: self.options.path.unlink(missing_ok=True)

        def interrupt(self, vector): pass
        def set_irq(self, level): pass
        def schedule(self, callback): self.loop.schedule(callback)
        def failed(self, reason): pass
"""

POINTS = {
    "backends:fakeback": "fakes:Back",
    "frontends:fakefront": "fakes:Front",
    "servers:fakepipe": "fakes:Pipe",
}


@pytest.fixture
def fakes(install: Install) -> Path:
    """Install one plugin of each kind; return the folder that they were put into."""
    return install("vnic-fakes", POINTS, fakes=GOOD)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> list[str]:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()


# ---- list ----------------------------------------------------------------------------------------


def test_list_prints_each_plugins_kind_prefix_distribution_and_version(fakes: Path) -> None:
    rows = [line.split() for line in invoke("list").stdout.splitlines()]
    assert ["backend", "fakeback", "vnic-fakes", "1.0"] in rows
    assert ["server", "fakepipe", "vnic-fakes", "1.0"] in rows


def test_list_imports_nothing(install: Install) -> None:
    install("vnic-bomb", {"backends:bomb": "bomb:Bomb"}, bomb="raise SystemExit('boom')")
    result = invoke("list")
    assert result.exit_code == 0
    assert "bomb" in result.stdout
    assert "bomb" not in sys.modules


def test_list_is_json_when_a_program_asks(fakes: Path) -> None:
    rows = json.loads(invoke("list", "--json").stdout)
    assert {
        "group": "backends",
        "prefix": "fakeback",
        "distribution": "vnic-fakes",
        "version": "1.0",
        "value": "fakes:Back",
        "also_claimed_by": [],
    } in rows


def test_list_notes_a_prefix_that_two_claim(fakes: Path, install: Install) -> None:
    install("other", {"backends:fakeback": "fakes:Back"})
    lines = invoke("list").stdout.splitlines()
    assert sum(line.rstrip().endswith(("by vnic-fakes", "by other")) for line in lines) == 2


def test_list_check_says_what_fails_to_load_and_why(fakes: Path, install: Install) -> None:
    install("vnic-bomb", {"backends:bomb": "bomb:Bomb"}, bomb="raise RuntimeError('no licence')")
    result = invoke("list", "--check")
    assert result.exit_code == 1
    bomb = 'backend "bomb" of vnic-bomb 1.0 can\'t be imported: RuntimeError: no licence'
    assert any(line.startswith(bomb) for line in result.stdout.splitlines())
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["backend", "fakeback", "vnic-fakes", "1.0", "loads"] in rows
    assert ["backend", "bomb", "vnic-bomb", "1.0", "can't", "be", "loaded"] in rows


def test_the_version_is_the_packages() -> None:
    assert invoke("--version").stdout == f"vnic, version {vnic.__version__}\n"


# ---- serve: what it refuses ----------------------------------------------------------------------


def test_serve_has_an_option_for_each_server_and_imports_none(install: Install) -> None:
    install("vnic-bomb", {"servers:bomb-user": "bomb:Bomb"}, bomb="raise SystemExit('boom')")
    result = invoke("serve", "--help")
    assert result.exit_code == 0
    assert "--bomb-user PATH" in result.stdout
    assert "bomb" not in sys.modules


def test_serve_needs_a_server(fakes: Path) -> None:
    (line,) = refused("serve", "fakefront,fakeback0")
    assert line.startswith("vnic: fakefront-fakeback0: nothing says how to serve it; add ")
    assert "--fakepipe PATH" in line


def test_serve_takes_one_server(install: Install, fakes: Path) -> None:
    install("other", {"servers:otherpipe": "fakes:Pipe"})
    (line,) = refused("serve", "fakefront,fakeback0", "--fakepipe", "/a", "--otherpipe", "/b")
    assert line.startswith("vnic: fakefront-fakeback0: 2 servers are asked for; keep one of ")


def test_a_wrong_spec_is_one_line_and_exit_code_2() -> None:
    (line,) = refused("serve", "virtio-net")
    assert line.startswith('vnic: "virtio-net": no backend; write FRONTEND,BACKEND')


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("fakefront,fkaeback0", 'no backend matches "fkaeback0"; installed: '),
        ("fakefrnt,fakeback0", 'no frontend matches "fakefrnt"; installed: '),
        ("fakefront,fakeback0,mut=9000", 'unknown option "mut"'),
        ("fakefront,fakeback0,mtu=9", "mtu=9: out of range; give 68 to 65535"),
        ("fakefront,fakeback0,mac=01:00:00:00:00:00", "mac=01:00:00:00:00:00: "),
        ("fakefront,fakeback-busy", "fakeback-busy: in use; stop the other"),
    ],
)
def test_a_nic_that_cannot_be_is_one_line_and_leaves_nothing_open(
    fakes: Path, tmp_path: Path, spec: str, problem: str
) -> None:
    path = tmp_path / "web.pipe"
    (line,) = refused("serve", spec, "--fakepipe", path)
    assert line.startswith("vnic: ")
    assert problem in line
    assert not path.exists()


def test_a_path_that_exists_is_one_line_and_stays(fakes: Path, tmp_path: Path) -> None:
    path = tmp_path / "web.pipe"
    path.write_text("somebody's")
    (line,) = refused("serve", "fakefront,fakeback0", "--fakepipe", path)
    assert line == f"vnic: {path}: File exists; remove it"
    assert path.read_text() == "somebody's"


def test_a_server_that_cannot_be_imported_is_one_line(install: Install, fakes: Path) -> None:
    install("vnic-bomb", {"servers:bomb": "bomb:Bomb"}, bomb="raise RuntimeError('no licence')")
    (line,) = refused("serve", "fakefront,fakeback0", "--bomb", "/x")
    assert 'server "bomb" of vnic-bomb 1.0 can\'t be imported: RuntimeError: no licence' in line


def test_a_wrong_value_for_a_server_names_the_server(fakes: Path) -> None:
    (line,) = refused("serve", "fakefront,fakeback0", "--fakepipe", "")
    assert line == (
        "vnic: fakefront-fakeback0: fakepipe: "
        "path=: it's empty; give a value, or leave the option out"
    )


def test_an_error_comes_with_its_traceback_where_all_is_to_be_told() -> None:
    for arguments in (["-vv", "serve", "x"], ["-v", "serve", "x", "-v"]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback" in result.output
    assert "Traceback" not in invoke("serve", "x", "-v").output


# ---- run: what it refuses ------------------------------------------------------------------------


def write(tmp_path: Path, source: str) -> Path:
    file = tmp_path / "net.toml"
    file.write_text(source)
    return file


def test_run_needs_a_file_that_is_there(tmp_path: Path) -> None:
    (line,) = refused("run", tmp_path / "no.toml")
    assert line == f"vnic: {tmp_path}/no.toml: cannot read it: No such file or directory"


def test_run_needs_a_server_for_each_nic(fakes: Path, tmp_path: Path) -> None:
    nic = '[[nic]]\nfrontend = "fakefront"\nbackend = "fakeback0"\n'
    file = write(tmp_path, f'{nic}fakepip = "/x"\n{nic}name = "web"')
    first, second = refused("run", file)
    assert first.startswith(f"vnic: {file}: [[nic]] 1: no server; add a key for one: ")
    assert first.endswith('; did you mean "fakepipe"?')
    assert second.startswith(f'vnic: {file}: [[nic]] 2 "web": no server; add a key for one: ')


def test_run_tells_all_problems_and_leaves_nothing_open(fakes: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        f"""
        [[nic]]
        frontend = "fakefront"
        backend = "fakeback0"
        fakepipe = "{tmp_path}/0.pipe"

        [[nic]]
        frontend = "fakefront"
        backend = "fakeback-busy"
        fakepipe = "{tmp_path}/1.pipe"

        [[nic]]
        frontend = "fakefront"
        backend = "fakeback2"
        mtu = 9
        fakepipe = "{tmp_path}/2.pipe"

        [[patch]]
        between = ["fakeback3", "fakeback4-busy"]
        """,
    )
    lines = refused("run", file)
    assert len(lines) == 3
    for problem in ("fakeback-busy: in use", "mtu=9: out of range", "fakeback4-busy: in use"):
        assert any(problem in line for line in lines), problem
    assert not list(tmp_path.glob("*.pipe"))


# ---- serving, as a process -----------------------------------------------------------------------


class Command:
    """``vnic ...`` as a process of its own, with the fakes installed."""

    def __init__(self, site: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from vnic.cli import main; main()", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(site)},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)[1]
        return line.rstrip("\n")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        assert errors == ""
        return self.process.returncode


@pytest.fixture
def command(fakes: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*arguments: str | Path) -> Command:
        started.append(Command(fakes, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_an_error_is_said_on_stderr(command: Callable[..., Command]) -> None:
    wrong = command("serve", "virtio-net").process
    output, errors = wrong.communicate(timeout=20)
    assert (wrong.returncode, output) == (2, "")
    assert errors.startswith('vnic: "virtio-net": no backend; ')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_when_it_serves_and_a_signal_ends_it_with_nothing_left(
    command: Callable[..., Command], tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "web.pipe"
    serving = command("serve", "fakefront,fakeback0", "--fakepipe", path)
    assert serving.line() == f"fakefront-fakeback0: serving fakefront on fakeback0 at {path}"
    assert path.exists()
    assert serving.end(number) == 0
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_after_the_first_change_nothing(
    command: Callable[..., Command], tmp_path: Path, number: signal.Signals
) -> None:
    serving = command("serve", "fakefront,fakeback0", "--fakepipe", tmp_path / "web.pipe")
    serving.line()
    while serving.process.poll() is None:
        serving.process.send_signal(number)
    assert serving.process.communicate(timeout=20) == ("", "")
    assert serving.process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_signal_while_things_are_opened_closes_them(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    source = "".join(
        f'[[nic]]\nfrontend = "fakefront"\nbackend = "{backend}"\nfakepipe = "{tmp_path}/{n}"\n'
        for n, backend in enumerate(["fakeback0", "fakeback-stop", "fakeback2"])
    )
    opening = command("run", write(tmp_path, source)).process
    assert opening.communicate(timeout=20) == ("", "")
    assert opening.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.toml"]


def test_serve_speaks_json_to_programs(command: Callable[..., Command], tmp_path: Path) -> None:
    path = tmp_path / "web.pipe"
    serving = command(
        "serve", "fakefront,fakeback0,name=web", "--fakepipe", path, "--json", "--stats", "0.01"
    )
    assert json.loads(serving.line()) == {
        "event": "serving",
        "nic": "web",
        "frontend": "fakefront",
        "backend": "fakeback0",
        "server": "fakepipe",
        "path": str(path),
    }
    stats = json.loads(serving.line())
    assert (stats["event"], stats["nic"]) == ("stats", "web")
    assert serving.end(signal.SIGTERM) == 0


def test_run_serves_all_nics_of_a_file(command: Callable[..., Command], tmp_path: Path) -> None:
    source = "".join(
        f'[[nic]]\nfrontend = "fakefront"\nbackend = "fakeback{n}"\nfakepipe = "{tmp_path}/{n}"\n'
        for n in range(3)
    )
    file = write(tmp_path, f'{source}[[patch]]\nbetween = ["fakeback8", "fakeback9"]\n')
    running = command("run", file)
    assert running.line() == "patched fakeback8 to fakeback9"
    for n in range(3):
        said = f"fakefront-fakeback{n}: serving fakefront on fakeback{n} at {tmp_path}/{n}"
        assert running.line() == said
    assert running.end(signal.SIGTERM) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.toml"]
