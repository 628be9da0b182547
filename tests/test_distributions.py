"""The distributions as their users get them: wheels in an empty environment, found and loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MEMBERS = [ROOT / "core", ROOT / "plugins/tap", ROOT / "plugins/virtio_net"]

ACME_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-wire"
version = "1.2.3"
dependencies = ["vnic>=0.1"]

[project.entry-points."vnic.backends"]
acme = "acme_wire:Wire"

[tool.setuptools]
py-modules = ["acme_wire"]
"""

ACME_BACKEND = '''\
"""A backend that its users install from elsewhere: it sends every frame back."""

from vnic import hookimpl


class Wire:
    @hookimpl
    def init(self, name, options, link):
        self.link, self.frames = link, []

    @hookimpl
    def cleanup(self):
        self.frames = []

    @hookimpl
    def send(self, burst):
        self.frames += [bytes(frame) for frame in burst]
        self.link.readable()
        return len(burst)

    @hookimpl
    def recv(self, room):
        n = 0
        while self.frames and room.put_frame(self.frames[0]):
            n += 1
            del self.frames[0]
        return n
'''


def run(*command: str | Path, cwd: Path) -> str:
    """Run it away from the checkout; return what it printed, or fail with all that it said."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> Path:
    found = shutil.which("uv", path=f"{ROOT / '.venv-uv/bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("uv: not found; `make setup` brings it")
    return Path(found)


@pytest.fixture(scope="module")
def bin_dir(uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds three of our wheels, and one of somebody else."""
    work = tmp_path_factory.mktemp("distributions")
    acme = work / "acme"
    acme.mkdir()
    (acme / "pyproject.toml").write_text(ACME_PYPROJECT)
    (acme / "acme_wire.py").write_text(ACME_BACKEND)

    def build(source: Path) -> None:
        """Make an sdist, and the wheel from that alone."""
        run(uv, "build", "--quiet", "--out-dir", work / "dist", source, cwd=work)

    with ThreadPoolExecutor(max_workers=2) as builders:
        list(builders.map(build, [*MEMBERS, acme]))
    run(uv, "venv", "--quiet", "--python", sys.executable, work / "venv", cwd=work)
    wheels = sorted((work / "dist").glob("*.whl"))
    python = work / "venv/bin/python"
    run(uv, "pip", "install", "--quiet", "--python", python, *wheels, cwd=work)
    return python.parent


@pytest.fixture(scope="module")
def listed(bin_dir: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """What ``vnic list`` says: distribution and version, by group and prefix."""
    rows = json.loads(run(bin_dir / "vnic", "list", "--json", cwd=bin_dir))
    return {(r["group"], r["prefix"]): (r["distribution"], r["version"]) for r in rows}


def test_what_is_installed_is_listed_and_nothing_else(
    listed: dict[tuple[str, str], tuple[str, str]],
) -> None:
    assert listed == {
        ("backends", "acme"): ("acme-wire", "1.2.3"),
        ("backends", "loop"): ("vnic", "0.1.0"),
        ("backends", "macvtap"): ("vnic-tap", "0.1.0"),
        ("backends", "null"): ("vnic", "0.1.0"),
        ("backends", "tap"): ("vnic-tap", "0.1.0"),
        ("drivers", "virtio-net"): ("vnic-virtio-net", "0.1.0"),
        ("frontends", "virtio-net"): ("vnic-virtio-net", "0.1.0"),
    }


@pytest.mark.parametrize(
    ("group", "prefix", "module"),
    [
        ("backends", "tap", "vnic_tap"),
        ("frontends", "virtio-net", "vnic_virtio_net"),
        ("drivers", "virtio-net", "vnic_virtio_net"),
        ("backends", "acme", "acme_wire"),
    ],
)
def test_a_plugin_loads_from_its_wheel(bin_dir: Path, group: str, prefix: str, module: str) -> None:
    code = (
        "import vnic, vnic.registry\n"
        f"plugin = vnic.registry.Registry().load({group!r}, {prefix!r})\n"
        "print(plugin.cls.__module__.partition('.')[0], vnic.__file__)\n"
    )
    loaded, core = run(bin_dir / "python", "-I", "-c", code, cwd=bin_dir).split()
    assert loaded == module
    assert Path(core).is_relative_to(bin_dir.parent)
