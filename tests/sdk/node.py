"""Packages of npm, kept beside the environments of the real servers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.real.environments import INSTALL_TIMEOUT, Environment


class NodeMissing(Exception):
    """No node with npm was found on the PATH, or npm could not install what is needed."""


class NodePackages(Environment):
    """What npm installs, in a folder of its own."""

    def folder(self) -> Path:
        """The folder, filled now if it is not there yet.

        :raises NodeMissing: if that cannot be done.
        """
        if not shutil.which("node") or not shutil.which("npm"):
            raise NodeMissing(NodeMissing.__doc__)
        return self.python().parents[1]

    def _recipe(self) -> tuple[object, ...]:
        return ("npm", self.packages)

    def _make(self, directory: Path) -> None:
        directory.mkdir()
        options = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts")
        ran = subprocess.run(
            ["npm", "install", *options, "--prefix", str(directory), *self.packages],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
        if ran.returncode != 0:
            raise NodeMissing(f"npm install failed:\n{ran.stdout[-2000:]}")
