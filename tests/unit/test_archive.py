"""The form of backup files: what was written is read, and any damage is found."""

import hashlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import archive
from exesys.errors import BackupError

HEADER = archive.Header(
    time="2026-01-31T12:00:00Z",
    exesys="0.1.0",
    format=1,
    prefix="{s07}",
    server="Valkey 9.1.2",
    database=0,
    data_database=None,
    keys={"0": 3, "1": 1},
    counts={"jobs": 2},
)


def written(*pieces: bytes, header: archive.Header = HEADER) -> bytes:
    file = io.BytesIO()
    writer = archive.Writer(file, header)
    for piece in pieces:
        writer.write(piece)
    writer.end()
    return file.getvalue()


def read(content: bytes) -> tuple[archive.Header, bytes]:
    kept: list[bytes] = []
    header = archive.read(io.BytesIO(content), "there.backup", kept.append)
    return header, b"".join(kept)


def summed(content: bytes) -> bytes:
    """Return a file of these first bytes whose sum is right."""
    return content + b"\nsha256 %s\n" % hashlib.sha256(content).hexdigest().encode()


@given(st.lists(st.binary(max_size=200)))
def test_what_was_written_is_read(pieces):
    assert read(written(*pieces)) == (HEADER, b"".join(pieces))


def test_a_snapshot_larger_than_a_piece_is_read():
    snapshot = bytes(range(256)) * 10_000
    assert read(written(snapshot)) == (HEADER, snapshot)


def test_by_hand_the_snapshot_is_between_the_second_line_and_the_last_73_bytes():
    content = written(b"REDIS0010 with \n in it\n")
    assert content.split(b"\n", 2)[2][:-73] == b"REDIS0010 with \n in it\n"


@given(st.binary(max_size=300), st.data())
def test_any_flipped_bit_is_found(snapshot, data):
    content = bytearray(written(snapshot))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BackupError, match=r"damaged"):
        read(bytes(content))


def test_each_byte_of_a_backup_that_is_another_is_found():
    content = written(b"REDIS0010 the snapshot")
    for place in range(len(content)):
        for change in (0x01, 0x20, 0xFF):
            with pytest.raises(BackupError, match=r"there\.backup .*damaged"):
                read(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])


@given(st.binary(max_size=300), st.data())
def test_a_file_that_is_cut_off_or_longer_is_found(snapshot, data):
    content = written(snapshot)
    with pytest.raises(BackupError, match=r"there\.backup .*damaged"):
        read(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(BackupError, match="damaged"):
        read(content + data.draw(st.binary(min_size=1, max_size=100)))


@given(st.binary(max_size=300))
def test_another_file_is_no_backup(content):
    with pytest.raises(BackupError, match=r"is no backup of ExeSys"):
        read(content)


def test_a_newer_form_is_named():
    content = summed(written(b"x").replace(b"exesys-backup 1\n", b"exesys-backup 2\n", 1)[:-73])
    with pytest.raises(BackupError, match=r"a backup of form 2, and this ExeSys reads form 1") as caught:
        read(content)
    assert "newer" in caught.value.fix


@pytest.mark.parametrize("line", [b"[]", b"{", b'{"time": 1}', b"null", b"\xff"])
def test_a_header_that_cannot_be_read_is_told(line):
    with pytest.raises(BackupError, match="a header that cannot be read"):
        read(summed(b"exesys-backup 1\n" + line + b"\nREDIS0010"))


def test_a_header_may_have_fields_that_are_not_known():
    told = json.dumps({**HEADER._asdict(), "more": 1}).encode()
    assert read(summed(b"exesys-backup 1\n" + told + b"\nREDIS0010")) == (HEADER, b"REDIS0010")
