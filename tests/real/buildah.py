"""Images, built and looked into without a Docker engine: by buildah, isolated by chroot alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from .environments import INSTALL_TIMEOUT, output_of

#: Settings of pip that say where packages are had from, and hold inside a build as well.
REGISTRY = {
    "cert",
    "default-timeout",
    "extra-index-url",
    "index-url",
    "proxy",
    "timeout",
    "trusted-host",
}


class EngineMissing(Exception):
    """An image is built by root, with buildah, crun and debootstrap."""


def check_engine() -> None:
    """EngineMissing is raised if something is not there."""
    programs = ("buildah", "crun", "debootstrap", "unshare")
    if os.geteuid() != 0 or None in map(shutil.which, programs):
        raise EngineMissing(EngineMissing.__doc__)


@attrs.frozen
class Storage:
    """A folder of buildah's, which has the images of another one as well if that is named."""

    folder: Path
    images: Path | None = None

    def buildah(self, *arguments: str) -> str:
        """What the command prints; RuntimeError if it fails."""
        options = ["--storage-driver=vfs", f"--root={self.folder / 'storage'}"]
        options.append(f"--runroot={self.folder / 'run'}")
        if self.images is not None:
            options.append(f"--storage-opt=vfs.imagestore={self.images / 'storage'}")
        ran = subprocess.run(
            ["buildah", *options, *arguments],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )
        if ran.returncode != 0:
            output = (ran.stdout + ran.stderr)[-4000:]
            raise RuntimeError(f"buildah {' '.join(arguments)} failed:\n{output}")
        return ran.stdout.strip()

    def build(self, context: Path, *arguments: str) -> Image:
        """Build the Dockerfile of that folder; no image is pulled."""
        # Arguments and variables would be seen in the image, and volumes are not.
        volumes = [f"--volume={path}:{at}:ro" for at, path in _pip_settings(self.folder).items()]
        options = ["--quiet", "--format=docker", "--pull-never", *volumes, *arguments]
        return Image(self, self.buildah("build", *options, str(context)))


@attrs.frozen
class Image:
    """An image in a storage."""

    storage: Storage
    name: str

    def config(self) -> dict[str, Any]:
        """Its configuration, by Docker's names."""
        found = json.loads(self.storage.buildah("inspect", "--type=image", self.name))
        config: dict[str, Any] = found["Docker"]["config"]
        return config

    def unpacked(self) -> Path:
        """A new folder with its files."""
        return Path(self.storage.buildah("mount", self.storage.buildah("from", self.name)))


def _pip_settings(folder: Path) -> dict[str, Path]:
    """How this machine's pip reaches its registry: files in *folder*, by their places in a build.

    What names a path of this machine means nothing there, but for certificates.
    """
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]
    listed = (output_of(*pip, "config", "list") or "").splitlines()
    settings: dict[str, str] = {}
    # The environment counts for more than any file.
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        text = str(ast.literal_eval(value))
        words = [word for word in text.split() if not word.startswith("file:")]
        if (name := key.rpartition(".")[2]) in REGISTRY and words:
            settings[name] = " ".join(words)
    files = {"/etc/pip.conf": folder / "pip.conf"}
    if certificates := settings.get("cert"):
        settings["cert"] = "/etc/pip.crt"
        files["/etc/pip.crt"] = Path(certificates)
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    descriptor = os.open(folder / "pip.conf", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # an index's URL may have a password
        file.write("".join(["[global]\n", *lines]))
    return files
