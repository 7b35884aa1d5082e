"""Compose files keep to the Compose Specification, by the schema that check-jsonschema has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.test_twistd import ROOT

from .environments import Environment

pytestmark = pytest.mark.real

CHECK_JSONSCHEMA = Environment("check-jsonschema", ("check-jsonschema==0.39.0",))

PATHS = [*ROOT.glob("compose.yaml"), *ROOT.glob("deploy/**/compose*.yaml")]


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    module = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    return subprocess.run(
        [str(CHECK_JSONSCHEMA.python()), *module, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_keeps_to_the_specification(path: Path, python312: str) -> None:
    ran = checked(path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_does_not_is_seen(tmp_path: Path, python312: str) -> None:
    wrong = tmp_path / "compose.yaml"
    text = (ROOT / "compose.yaml").read_text("utf-8")
    wrong.write_text(text.replace("    stop_grace_period:", "    stop_grace_periode:"), "utf-8")
    ran = checked(wrong)
    assert ran.returncode == 1 and "stop_grace_periode" in ran.stdout
