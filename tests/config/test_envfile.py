"""Env files, as they are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.config.envfile import env_file


def test_lines_of_all_kinds() -> None:
    text = (
        "\ufeff# a comment\r\n"
        "A=1\r\n"
        "  export B = two words  # a comment\n"
        "C='as it is \\n # $A'\n"
        'D="a\\nb \\"c\\" # d" # a comment\n'
        "E=\n"
        "F=a#b\n"
        "G=#b\n"
        "1H=no\n"
        "no variable\n"
        "\n"
        "A=2"
    )
    assert env_file(text) == {
        "A": "2",
        "B": "two words",
        "C": "as it is \\n # $A",
        "D": 'a\nb "c" # d',
        "E": "",
        "F": "a#b",
        "G": "",
    }


@given(st.text())
def test_whatever_stands_there_it_is_read(text: str) -> None:
    assert all(env_file(text))


@given(
    st.dictionaries(st.from_regex("[A-Z_]{1,9}", fullmatch=True), st.text(alphabet="ab \"\\\\'#="))
)
def test_what_is_in_double_quotes_is_kept(variables: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"')

    text = "\n".join(f'{name}="{quoted(value)}"' for name, value in variables.items())
    assert env_file(text) == variables
