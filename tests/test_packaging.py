"""The wheel: what is in it, and what it says of itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from llamaproxy import __version__

ROOT = Path(__file__).parents[1]

#: As pip would, but with the setuptools that is there: nothing is downloaded.
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    """One that is built of a copy: setuptools writes beside what it reads."""
    if tuple(map(int, version("setuptools").split(".")[:2])) < (70, 1):
        pytest.skip("NO WHEEL IS TESTED: that needs setuptools 70.1 or newer")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in ("llamaproxy", "twisted"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    [path] = built.glob("*.whl")
    with ZipFile(path) as opened:
        yield opened


@pytest.fixture
def metadata(wheel: ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(wheel.read(name))


def test_every_module_is_in_the_wheel_and_no_other(wheel: ZipFile) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in ("llamaproxy", "twisted")
        for path in (ROOT / package).rglob("*.py")
    }
    page = {str(p.relative_to(ROOT)) for p in (ROOT / "llamaproxy/admin/page").glob("*.*")}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "llamaproxy/admin/page/index.html" in page
    data = {"llamaproxy/py.typed", "llamaproxy/config/mcp.schema.json"}
    assert shipped == modules | page | data
    assert "twisted/plugins/llamaproxy_plugin.py" in shipped
    assert "twisted/__init__.py" not in shipped


def test_the_wheel_says_what_it_is(metadata: Message) -> None:
    assert metadata["Name"] == "llamaproxy"
    assert metadata["Version"] == __version__
    assert metadata["Author"] == "The llamaproxy developers"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL") or ())
    assert urls.keys() >= {"Documentation", "Changelog", "Issues", "Source"}
    assert all(url.startswith("https://") for url in urls.values())


def test_the_release_is_in_the_changelog() -> None:
    assert f"\n## {__version__} (" in (ROOT / "CHANGELOG.md").read_text("utf-8")
