"""The dashboard, the rules for alerts and the page for operators speak of series that there are.

The rules are run by Prometheus's own promtool. Without it that is skipped, in CI it fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from llamaproxy.admin import names
from llamaproxy.server.listen import ListenService
from tests.test_sockets import Wires, dechunked, head_and_body, on_sockets, wires

__all__ = ["wires"]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "operate.md").read_text("utf-8")
ALERTS = (DEPLOY / "alerts.yml").read_text("utf-8")
DASHBOARD: Any = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))

#: What prometheus_client itself knows of a process.
PROCESS = {
    "process_cpu_seconds_total": "counter",
    "process_max_fds": "gauge",
    "process_open_fds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_virtual_memory_bytes": "gauge",
}
KINDS = {series.name: series.kind for series in names.EVERY} | PROCESS
LABELS = {series.name: set(series.labels) for series in names.EVERY}

#: Labels that Prometheus and the alerts have of their own.
SCRAPED = {"instance", "job", "le"}

#: The tokens of PromQL, as far as names are told from all else by them.
TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<range>\[[^\]]*\])
    | (?P<number>\d[\w.]*)
    | (?P<word>[a-zA-Z_:][\w:]*)
    | (?P<sign>[-+*/%^=!<>~(){},@])
    | (?P<space>\s+)""",
    re.VERBOSE,
)
WORDS = {"and", "or", "unless", "bool", "offset"}
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}


def tokens_of(expression: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(expression):
        match = TOKEN.match(expression, at)
        assert match is not None, f"no PromQL: {expression[at:]!r}"
        if match.lastgroup != "space":
            tokens.append((str(match.lastgroup), match[0]))
        at = match.end()
    return tokens


def used_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The names of series in *expression*, each with the labels that it is selected by.

    The labels that it is grouped by are told under the empty name.
    """
    tokens = [*tokens_of(expression), ("end", "")]
    at = 0
    while at < len(tokens) - 1:
        kind, token = tokens[at]
        following = tokens[at + 1][1]
        at += 1
        if kind != "word" or token in WORDS:
            continue
        if token in GROUPING:
            labels, at = labels_in(tokens, at, "()") if following == "(" else (set(), at)
            yield "", labels
        elif following == "{":
            labels, at = labels_in(tokens, at, "{}")
            yield token, labels
        elif following not in ("(", "by", "without"):  # else a function
            yield token, set()


def labels_in(tokens: list[tuple[str, str]], at: int, pair: str) -> tuple[set[str], int]:
    """The labels in the brackets that begin at *at*, and what follows them."""
    end = next(i for i in range(at, len(tokens)) if tokens[i][1] == pair[1])
    return {token for kind, token in tokens[at:end] if kind == "word"}, end + 1


def series_of(name: str) -> str | None:
    """The series that has *name*, which may be one of a histogram's three; None if none has."""
    for suffix in ("_bucket", "_sum", "_count"):
        whole = name.removesuffix(suffix)
        if whole != name and KINDS.get(whole) == "histogram":
            return whole
    return name if KINDS.get(name) in ("counter", "gauge") else None


def panels() -> Iterator[Any]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def in_dashboard() -> list[tuple[str, str]]:
    found = [
        (panel["title"], target["expr"])
        for panel in panels()
        for target in panel.get("targets", ())
    ]
    found += [(each["name"], each["expr"]) for each in DASHBOARD["annotations"]["list"]]
    variables = DASHBOARD["templating"]["list"]
    # label_values(series, label) is Grafana's own.
    found += [
        (each["name"], re.sub(r"label_values\((.*), \w+\)", r"\1", each["definition"]))
        for each in variables
        if each["type"] == "query"
    ]
    return found


def in_alerts() -> list[tuple[str, str]]:
    """Each rule's name and expression; there is no YAML reader here, so lines have to be plain."""
    rules = re.split(r"^      - alert: ", ALERTS, flags=re.MULTILINE)[1:]
    found = []
    for rule in rules:
        lines = iter(rule.splitlines())
        name = next(lines)
        first = next(line for line in lines if line.startswith("        expr: "))
        expression = first.removeprefix("        expr: ")
        if expression == ">-":
            indented = takewhile(lambda line: line.startswith(" " * 10), lines)
            expression = " ".join(line.strip() for line in indented)
        found.append((name, expression))
    return found


EXPRESSIONS = [*in_dashboard(), *in_alerts()]
ALERT_NAMES = [name for name, _ in in_alerts()]


def test_names_are_found_in_an_expression() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le, tool) (rate(a_bucket{x=~"b.*",y!="c d"}[5m]))) '
        "/ on (z) group_left () e > 1e3 and absent(f)"
    )
    found = list(used_in(expression))
    assert found == [
        ("", {"le", "tool"}),
        ("a_bucket", {"x", "y"}),
        ("", {"z"}),
        ("", set()),
        ("e", set()),
        ("f", set()),
    ]


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("llamaproxy_chat_rounds_bucket", "llamaproxy_chat_rounds"),
        ("llamaproxy_chat_rounds", None),
        ("llamaproxy_requests_total", "llamaproxy_requests_total"),
        ("llamaproxy_requests_total_sum", None),
        ("llamaproxy_requests", None),
        ("llamaproxy_connections_count", None),
    ],
)
def test_a_histogram_is_asked_for_by_its_parts(name: str, series: str | None) -> None:
    assert series_of(name) == series


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_series_that_is_asked_for_exists_and_has_those_labels(
    where: str, expression: str
) -> None:
    used = list(used_in(expression))
    asked = {name: series_of(name) for name, _ in used if name}
    assert asked and None not in asked.values(), asked
    every = SCRAPED.union(*(LABELS.get(str(series), set()) for series in asked.values()))
    for name, labels in used:
        has = SCRAPED | LABELS.get(str(asked[name]), set()) if name else every
        assert labels <= has, (name, labels - has)


def test_there_are_panels_and_rules_to_look_at() -> None:
    assert len(in_dashboard()) > 40
    assert len(in_alerts()) == ALERTS.count("- alert: ") > 10


@on_sockets
async def test_a_daemon_exports_every_series_and_no_other(wires: Wires) -> None:
    anywhere = "tcp:0:interface=127.0.0.1"
    upstream = f"http://127.0.0.1:{wires.listen(wires.stack)}"
    started: Any = wires.start(
        "--listen", anywhere, "--admin", anywhere, "--llamastack-url", upstream
    )
    services = [started, *(each for each in started if hasattr(each, "services"))]
    hosts: list[Any] = [
        port.getHost()
        for service in services
        for each in service
        if isinstance(each, ListenService)
        for port in each._ports
    ]
    for port in [host.port for host in hosts]:
        answer = await (await wires.ask(port, "GET /live")).end()
        if b" 200 " in answer.partition(b"\r\n")[0]:
            break
        wires.peers.clear()
    head, body = head_and_body(await (await wires.ask(port, "GET /metrics")).end())
    text = (dechunked(body) if b"chunked" in head.lower() else body).decode()
    exported = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    of_workers = {series.name for series in names.OF_WORKERS}
    assert exported == {name: kind for name, kind in KINDS.items() if name not in of_workers}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_page_for_operators_explains_each_series(name: str) -> None:
    assert f"| `{name}` | {KINDS[name]} |" in PAGE


def test_the_page_names_no_series_that_there_is_not() -> None:
    rows = re.findall(r"^\| `((?:llamaproxy|gen_ai|process)_\w+)` \|", PAGE, re.MULTILINE)
    assert set(rows) == set(KINDS)


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_each_alert_says_what_to_do_and_leads_to_its_paragraph(name: str) -> None:
    rule = ALERTS.split(f"- alert: {name}\n")[1].split("- alert: ")[0]
    for part in ("severity: ", "summary: ", "description: "):
        assert part in rule
    assert rule.rstrip().endswith(f"/docs/operate.md#{name.lower()}")
    assert f"\n#### {name}\n" in PAGE
    assert name in (DEPLOY / "alerts_test.yml").read_text("utf-8")


def test_the_page_explains_no_alert_that_there_is_not() -> None:
    assert re.findall(r"^#### (Llamaproxy\w+)$", PAGE, re.MULTILINE) == ALERT_NAMES


def test_a_metric_has_a_name_as_prometheus_wants_it() -> None:
    for series in names.EVERY:
        assert series.name.endswith("_total") == (series.kind == "counter"), series.name
        assert bool(series.bounds) == (series.kind == "histogram"), series.name
        assert list(series.bounds) == sorted(set(series.bounds))
        assert not series.name.endswith(("_ms", "_milliseconds", "_kb", "_bucket", "_sum"))


def test_panels_do_not_overlap_and_take_their_data_from_the_variable() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            sources = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
            assert all(each["uid"] == "${datasource}" for each in sources)
    assert DASHBOARD["panels"][0]["title"] == "Who is slow"
    assert len({panel["id"] for panel in panels()}) == len(list(panels()))


# --- by Prometheus itself


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        consequence = (
            "THE RULES FOR ALERTS ARE NOT TESTED: there is no promtool (Debian: prometheus)"
        )
        if os.environ.get("CI"):
            pytest.fail(consequence)
        pytest.skip(consequence)
    return program


def run(promtool: str, *arguments: str, cwd: Path) -> str:
    ran = subprocess.run(
        [promtool, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_prometheus_takes_the_rules(promtool: str) -> None:
    out = run(promtool, "check", "rules", "--lint-fatal", "alerts.yml", cwd=DEPLOY)
    assert f"{len(ALERT_NAMES)} rules found" in out


def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", "alerts_test.yml", cwd=DEPLOY)


def test_prometheus_understands_every_expression_of_the_dashboard(
    promtool: str, tmp_path: Path
) -> None:
    rules = []
    for number, (_, expression) in enumerate(in_dashboard()):
        for variable, value in (
            ("$__rate_interval", "5m"),
            ("$__range", "3h"),
            ("$instance", ".*"),
        ):
            expression = expression.replace(variable, value)
        assert "$" not in expression
        rules.append({"record": f"panel_{number}", "expr": expression})
    # JSON is YAML too.
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", file.name, cwd=tmp_path)


def test_prometheus_finds_nothing_wrong_with_what_is_exported(promtool: str) -> None:
    from prometheus_client import generate_latest

    from tests.chat.script import Chat
    from tests.support import calling, saying

    proxy = Chat(calling("clock"), saying("Noon."), stream=True).proxy
    text = generate_latest(proxy.metrics.registry)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
