"""What lies in a store can be read by nobody without the secret, and opened by who has it."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.memory.sealing import MAX_SEALED, MAX_TEXT, PREFIX, Seal, SealedTurn, Undecipherable

SEAL = Seal(b"x" * 16)
OWNER = bytes(32)
MARK = "_lp0123456789abcd"


@given(st.binary(max_size=1000))
def test_what_was_sealed_is_opened(text: bytes) -> None:
    value = SEAL.turn(OWNER, MARK).seal(text)
    assert value is not None
    assert SEAL.turn(OWNER, MARK).open(value) == text
    assert Seal(b"x" * 16).turn(OWNER, MARK).open(value) == text


def test_the_same_twice_is_not_the_same() -> None:
    turn = SEAL.turn(OWNER, MARK)
    assert turn.seal(b"text") != turn.seal(b"text")


@pytest.mark.parametrize(
    "other",
    [
        SEAL.turn(b"\1" * 32, MARK),
        SEAL.turn(OWNER, MARK[:-1] + "e"),
        SEAL.turn(OWNER + b"_", MARK[1:]),
        Seal(b"y" * 16).turn(OWNER, MARK),
    ],
    ids=["owner", "mark", "border", "secret"],
)
def test_nobody_else_finds_or_opens_it(other: SealedTurn) -> None:
    turn = SEAL.turn(OWNER, MARK)
    value = turn.seal(b"text")
    assert value is not None
    assert other.name != turn.name
    with pytest.raises(Undecipherable):
        other.open(value)


def test_a_name_tells_nothing() -> None:
    name = SEAL.turn(OWNER, MARK).name
    assert name.startswith(PREFIX) and len(name) == len(PREFIX) + 32
    assert MARK.encode() not in name


@given(st.data())
def test_what_was_changed_is_not_opened(data: st.DataObject) -> None:
    turn = SEAL.turn(OWNER, MARK)
    value = turn.seal(b"some text")
    assert value is not None
    place = data.draw(st.integers(0, len(value) - 1))
    changed = bytearray(value)
    changed[place] ^= data.draw(st.integers(1, 255))
    for other in (bytes(changed), value[:place], value + b"x", b"", bytes(MAX_SEALED + 1)):
        with pytest.raises(Undecipherable):
            turn.open(other)


def sealed(compressed: bytes) -> bytes:
    """What only somebody with the secret can make."""
    turn = SEAL.turn(OWNER, MARK)
    nonce = bytes(12)
    return nonce + turn._cipher.encrypt(nonce, compressed, turn._identity)


def test_so_much_is_unpacked_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = SEAL.turn(OWNER, MARK).seal(bytes(MAX_TEXT))
    assert largest is not None and len(SEAL.turn(OWNER, MARK).open(largest)) == MAX_TEXT
    assert SEAL.turn(OWNER, MARK).seal(bytes(MAX_TEXT + 1)) is None
    unpacked: list[int] = []
    make = zlib.decompressobj

    class Counted:
        def __init__(self) -> None:
            self._inflating = make()

        def decompress(self, data: bytes, limit: int) -> bytes:
            text = self._inflating.decompress(data, limit)
            unpacked.append(len(text))
            return text

        @property
        def eof(self) -> bool:
            return self._inflating.eof

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    bomb = zlib.compress(bytes(100 * MAX_TEXT))
    with pytest.raises(Undecipherable):
        SEAL.turn(OWNER, MARK).open(sealed(bomb))
    assert unpacked == [MAX_TEXT + 1]


@pytest.mark.parametrize("compressed", [b"", b"no zlib", zlib.compress(b"text")[:-1]])
def test_what_is_not_packed_is_not_unpacked(compressed: bytes) -> None:
    with pytest.raises(Undecipherable):
        SEAL.turn(OWNER, MARK).open(sealed(compressed))


def test_what_cannot_be_packed_fits_all_the_same() -> None:
    text = random.Random(1).randbytes(MAX_TEXT)
    turn = SEAL.turn(OWNER, MARK)
    value = turn.seal(text)
    assert value is not None and len(value) <= MAX_SEALED
    assert turn.open(value) == text
