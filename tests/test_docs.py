"""The documents: what the code cites is there, links lead somewhere, examples print what they say.

A rule is cited by its number in a comment or a docstring, as is (DESIGN: W4) here; a section as
``DESIGN: section 8``.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import attrs
import pytest

from llamaproxy.advice import ADVICE
from llamaproxy.config.options import Options

from .sdk.node import NodeMissing
from .test_sdk import OPENAI
from .test_twistd import Daemon

ROOT = Path(__file__).parents[1]
DESIGN = ROOT / "docs" / "design.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

#: The number of a rule: of the tool loop, of streams, of Open WebUI, of tool sources.
RULE = re.compile(r"\b[LSWT][1-9]\d?[a-c]?\b")

#: The contract's name with neither a rule nor a section behind it.
UNCITED = re.compile(r"DESIGN(?!:\s+(?:(?:section )?\d|[LSWT][1-9]))")
SECTION = re.compile(r"DESIGN:\s+(?:section )?(\d)")

#: Options of other programs, which the documents name too.
FOREIGN_OPTIONS = {
    *("enable-ui", "fail-with-body"),  # the server's, curl's
    *("pidfile", "logfile", "logger", "syslog", "uid", "chroot"),  # twistd's
    *(
        "add-host",
        "build-arg",
        "cap-drop",
        "network",
        "read-only",
        "rm",
        "time",
        "tmpfs",
    ),  # docker's
    *("extra", "no-annotate", "no-header", "python-version", "upgrade"),  # uv's
    "minutes",  # the soak test's
    *("before", "json", "root", "rounds", "seconds"),  # the benchmark's
    *("config-settings", "enable-auto-tool-choice", "jinja", "tool-call-parser"),
}

_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


# --- what is cited


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """The comments of a module, each with its line."""
    with path.open("rb") as lines:
        for token in tokenize.tokenize(lines.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#: ")


@cache
def remarks(path: Path) -> str:
    """The comments and docstrings of a module."""
    found = [comment for _, comment in comments(path)]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            found.append(ast.get_docstring(node) or "")
    return "\n".join(found)


def modules() -> list[Path]:
    return sorted([*(ROOT / "llamaproxy").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def rules() -> list[str]:
    """The rules of the contract, in its order."""
    return re.findall(rf"^### ({RULE.pattern})", DESIGN.read_text("utf-8"), re.MULTILINE)


def test_what_is_cited_is_in_the_contract() -> None:
    numbers = set(rules())
    sections = set(re.findall(r"^## (\d)", DESIGN.read_text("utf-8"), re.MULTILINE))
    for path in modules():
        text = remarks(path)
        assert set(RULE.findall(text)) <= numbers, path
        assert set(SECTION.findall(text)) <= sections, path
        assert not UNCITED.search(text), f"{path}: DESIGN: and the number of a rule or a section"
        for document in re.findall(r"\bdocs/[\w.]+\.md\b", text):
            assert (ROOT / document).is_file(), (path, document)


def test_a_rule_has_one_number_and_a_reason() -> None:
    numbers = rules()
    assert len(numbers) == len(set(numbers))
    _, *texts = re.split(r"^### ", DESIGN.read_text("utf-8"), flags=re.MULTILINE)
    for number, text in zip(numbers, texts, strict=True):
        rule = text.partition("\n## ")[0]
        assert rule.startswith(f"{number} ")
        assert "\n**Why.** " in rule, number


@cache
def rules_of_tests() -> dict[str, list[str]]:
    """The test functions that name each rule, in a docstring or in a comment above or inside."""
    tests_of_rule: dict[str, list[str]] = {}
    for path in modules():
        if not path.name.startswith("test_"):
            continue
        remarks_by_line = dict(comments(path))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, FUNCTIONS) and node.name.startswith("test_"):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                while first - 1 in remarks_by_line:
                    first -= 1
                lines = range(first, (node.end_lineno or first) + 1)
                words = [remarks_by_line[line] for line in lines if line in remarks_by_line]
                for rule in RULE.findall("\n".join([ast.get_docstring(node) or "", *words])):
                    tests_of_rule.setdefault(rule, []).append(f"{path.name}::{node.name}")
    return tests_of_rule


@pytest.mark.parametrize("rule", rules())
def test_a_rule_is_named_by_the_test_of_it(rule: str) -> None:
    """By a function: a list at the top of a module does not say which of them it is."""
    assert rules_of_tests().get(rule)


# --- what the documents name


@cache
def anchors(path: Path) -> frozenset[str]:
    """The names under which GitHub's pages have the headings of a document."""
    text = _FENCED.sub("", path.read_text("utf-8"))
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")
        repeated = found.count(words)
        found.append(f"{words}-{repeated}" if repeated else words)
    return frozenset(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = _FENCED.sub("", path.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.resolve()), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tests_and_fixtures_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:tests|llamaproxy|docs)/[^`\s]+)`", path.read_text("utf-8")):
        pattern = name.replace("<version>", "*").replace("NAME", "*")
        assert any(ROOT.glob(pattern)), name


def test_options_that_are_named_exist() -> None:
    """README's table is compared by a test of the options."""
    known = {option.rstrip("=") for option in Options({}).longOpt}
    for path in [ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", path.read_text("utf-8")))
        assert named - FOREIGN_OPTIONS <= known, path.name


def log_formats() -> Iterator[str]:
    """The formats of all lines that the product logs, but for those that debugging is for."""
    levels = {"info", "warn", "error", "failure", "critical"}
    for path in sorted((ROOT / "llamaproxy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in levels
                and ast.unparse(node.func.value).endswith("_log")
            ):
                line = node.args[0]
                assert isinstance(line, ast.Constant) and isinstance(line.value, str), path
                yield line.value


@pytest.mark.parametrize("line", sorted(set(log_formats()) - {"{message}"}))
def test_a_line_of_the_log_is_explained(line: str) -> None:
    """The page has it with words in capitals, or nothing, for what varies."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    _, section = page.split("\n## What each line of the log means\n")
    constant = [re.escape(piece) for piece in re.split(r"\{[^}]*\}", line)]
    assert re.search(r"`" + r"[^`\n]*".join(constant) + r"`", section), line


def test_the_words_of_the_check_are_those_of_the_page() -> None:
    """In its order, with words in capitals for what varies."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    section = page.split("\n## Where are my tools?\n")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert rows == [
        f"| {re.sub('{([a-z]+)}', lambda name: name[1].upper(), advice.what)} | {advice.do} |"
        for advice in ADVICE.values()
    ]


def test_a_metric_is_explained() -> None:
    page = (ROOT / "docs" / "operate.md").read_text("utf-8")
    names = {
        name
        for path in (ROOT / "llamaproxy").rglob("*.py")
        for name in re.findall(r'"(llamaproxy_[a-z_]+)"', path.read_text("utf-8"))
    }
    assert len(names) >= 5
    assert not [name for name in names if f"| `{name}" not in page]


def test_what_makes_cards_work_ships_with_the_project() -> None:
    """The three header fields, and the settings of the model (DESIGN: W4)."""
    for path in (ROOT / "README.md", ROOT / "compose.yaml", ROOT / "docs" / "openwebui.md"):
        text = path.read_text("utf-8")
        for name, template in (
            ("Task", "TASK"),
            ("Chat-Id", "CHAT_ID"),
            ("Message-Id", "MESSAGE_ID"),
        ):
            assert f'"X-OpenWebUI-{name}": "{{{{{template}}}}}"' in text, path.name
        assert "builtin_tools" in text, path.name


def test_the_test_that_contributors_start_from_passes() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    [example] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    names["test_a_tool_is_run"]()
    support = ROOT / "tests" / "support.py"
    script = [line.strip() for line in example.splitlines() if "stack.on" in line]
    assert "\n".join(script) in (ast.get_docstring(ast.parse(support.read_text("utf-8"))) or "")


# --- what the examples print


@attrs.frozen
class Example:
    """Code in a document, and what the text behind it says that it prints, if there is any."""

    language: str
    code: str
    prints: str | None
    line: int


def examples() -> list[Example]:
    path = ROOT / "docs" / "clients.md"
    text = path.read_text("utf-8")
    pattern = r"^```(python|javascript|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    return [
        Example(block[1], block[2], block[3], text.count("\n", 0, block.start()) + 1)
        for block in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("demo") / "log", "--demo")
    yield daemon
    daemon.process.kill()
    daemon.process.wait()


def _command(example: Example, folder: Path) -> list[str]:
    """What runs *example*; the test is skipped where that is not installed."""
    if example.language == "sh":
        if shutil.which("curl") is None:
            pytest.skip("there is no curl")
        return ["sh", "-ec", example.code]
    if example.language == "python":
        for package in re.findall(r"^from (\w+)", example.code, re.MULTILINE):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"there is no {package}")
        return [sys.executable, "-c", example.code]
    try:
        packages = OPENAI.folder() / "node_modules"
    except NodeMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    (folder / "node_modules").symlink_to(packages)
    program = folder / "example.mjs"
    program.write_text(example.code, "utf-8")
    return ["node", str(program)]


@pytest.mark.parametrize(
    "example", examples(), ids=lambda example: f"{example.language}-{example.line}"
)
def test_an_example_prints_what_it_says(example: Example, demo: Daemon, tmp_path: Path) -> None:
    # Where the daemon listens: a name may have an IPv6 address first.
    code = example.code.replace("localhost:8322", f"127.0.0.1:{demo.port}")
    command = _command(attrs.evolve(example, code=code), tmp_path)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    if example.prints is None:
        assert '"object":' in ran.stdout and '"error"' not in ran.stdout
    else:
        assert ran.stdout == example.prints


# --- the README's second screen


def _first_sh_blocks(heading: str) -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```\n", section, re.MULTILINE | re.DOTALL)


class _Ollama(BaseHTTPRequestHandler):
    """Answers as an Ollama does whose model calls the first tool, and then says what came of it."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._reply(404, b"404 page not found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = body["messages"][-1]
        message: dict[str, Any] = {"role": "assistant", "content": f"I heard: {last['content']}"}
        if last["role"] != "tool":
            function = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
            call = {"id": "call_a1", "index": 0, "type": "function", "function": function}
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        completion = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
        whole = {**completion, "model": body["model"], "choices": [choice]}
        self._reply(200, json.dumps(whole).encode())

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_the_three_commands_for_a_local_server(tmp_path: Path) -> None:
    """With stand-ins for Ollama, and for the program that the file names."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    write, start, ask = _first_sh_blocks("With Ollama, llama-server and the like")
    subprocess.run(["sh", "-ec", write], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "mcp.json").read_text())
    program = tmp_path / config["mcpServers"]["time"]["command"]
    server = ROOT / "tests" / "tools" / "program.py"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{server}" well\n')
    program.chmod(0o755)
    ollama = ThreadingHTTPServer(("127.0.0.1", 0), _Ollama)
    Thread(target=ollama.serve_forever, daemon=True).start()
    words = start.replace("localhost:11434", f"127.0.0.1:{ollama.server_port}")
    words = words.replace("mcp.json", str(tmp_path / "mcp.json"))
    options = shlex.split(words)[shlex.split(words).index("llamaproxy") + 1 :]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    daemon = Daemon(tmp_path / "log", *options, PATH=path)
    try:
        asked = ask.replace("localhost:8322", f"127.0.0.1:{daemon.port}")
        ran = subprocess.run(
            ["sh", "-ec", asked], capture_output=True, text=True, timeout=60, check=True
        )
        message = json.loads(ran.stdout)["choices"][0]["message"]
        assert message["content"].startswith("I heard: ")
        assert "tool echo of time answered" in daemon.log.read_text("utf-8")
    finally:
        daemon.stop()
        ollama.shutdown()
        ollama.server_close()
