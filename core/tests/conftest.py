"""Fixtures that several of core's tests share."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest


class Install(Protocol):
    def __call__(
        self, distribution: str, entry_points: dict[str, str], version: str = "1.0", **modules: str
    ) -> Path: ...


@pytest.fixture
def install(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Install]:
    """Install throw-away distributions: metadata and modules in a folder on ``sys.path``.

    ``install("vnic-wire", {"backends:wire": "wire:Wire"}, wire="class Wire: ...")``
    """
    site = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(site))

    def install(
        distribution: str, entry_points: dict[str, str], version: str = "1.0", **modules: str
    ) -> Path:
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = []
        for key, value in entry_points.items():
            group, _, prefix = key.partition(":")
            lines += [f"[vnic.{group}]", f"{prefix} = {value}"]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in modules.items():
            (site / f"{name}.py").write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return site

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(site)):
            del sys.modules[name]
