"""What the files of deploy/ set in a daemon's environment, as the daemon itself takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamaproxy.config import options
from llamaproxy.config.options import SETTINGS, Options

#: Variables that are no options: see README's table.
OTHERS = {
    *("LLAMAPROXY_LISTEN", "LLAMAPROXY_MCP_SERVERS", "LLAMAPROXY_MCP_HEADERS"),
    *("LLAMAPROXY_DEMO", "LLAMAPROXY_INSPECT_CONTENTS", "LLAMASTACK_API_KEY"),
}
VARIABLES = {setting.environment for setting in SETTINGS} | OTHERS


def taken(environment: Mapping[str, str], directory: Path) -> Options:
    """The options of a daemon in *environment*, all of which it must know.

    :param directory: where a file of keys is made, which the environment names elsewhere.
    """
    assert set(environment) <= VARIABLES, set(environment) - VARIABLES
    keys = directory / "keys"
    keys.write_text("a-key-of-a-client\n")
    here = dict(environment)
    if "LLAMAPROXY_API_KEYS_FILE" in here:
        here["LLAMAPROXY_API_KEYS_FILE"] = str(keys)
    parsed = Options(here)
    parsed.parseOptions([])
    return parsed


def default(name: str) -> str:
    """The default of an option, as it is written."""
    [setting] = [each for each in options.SETTINGS if each.name == name]
    assert setting.default is not None
    return setting.default
