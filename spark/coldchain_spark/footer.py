"""Stamp Iceberg's field ids into the footer of a Parquet file that ClickHouse encoded.

Without them readers match columns by name, and a rename would lose data. Only the schema elements change: every
other byte of the footer is copied, so nothing that the encoder wrote can be lost or spelled in another way.

Sources: Thrift compact protocol (thrift-compact-protocol.md), parquet.thrift: FileMetaData {1: version, 2: schema,
3: num_rows, ...}, SchemaElement {4: name, 5: num_children, 9: field_id, 10: logicalType}.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"PAR1"
TAIL_BYTES = 8  # length of the footer, magic

_STOP, _TRUE, _FALSE, _I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_NAME, _CHILDREN, _FIELD_ID = 4, 5, 9


class FooterError(ValueError):
    """The bytes are not the end of a whole Parquet file: the stream was cut."""


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def number(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def field(self, last: int) -> tuple[int, int]:
        """Read a field's header: its id and type; type 0 ends the struct."""
        header = self.byte()
        if header == _STOP:
            return 0, _STOP
        delta = header >> 4
        return (last + delta if delta else self.number()), header & 0x0F

    def sequence(self) -> tuple[int, int]:
        """Read a list's header: its length and element type."""
        header = self.byte()
        size = header >> 4
        return (self.varint() if size == 15 else size), header & 0x0F

    def skip(self, kind: int, in_collection: bool = False) -> None:
        if kind in (_TRUE, _FALSE):
            if in_collection:
                self.byte()
        elif kind == _I8:
            self.at += 1
        elif kind in (_I16, _I32, _I64):
            self.varint()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            size = self.varint()
            self.at += size
        elif kind in (_LIST, _SET):
            size, element = self.sequence()
            for _ in range(size):
                self.skip(element, in_collection=True)
        elif kind == _STRUCT:
            last, kind = self.field(0)
            while kind != _STOP:
                self.skip(kind)
                last, kind = self.field(last)
        else:
            raise FooterError(f"the footer holds thrift type {kind}, which Parquet's metadata does not use")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _element(reader: _Reader, ids: Mapping[str, int], is_root: bool) -> bytes:
    """Copy one SchemaElement with its field id set; the root of the schema keeps none."""
    start, name, children = reader.at, "", 0
    before = after = reader.at  # where field_id belongs: behind the last field with a smaller id
    smaller, next_id, rest = 0, 0, b""
    last, kind = reader.field(0)
    while kind != _STOP:
        body = reader.at
        if last == _NAME:
            size = reader.varint()
            name = reader.data[reader.at : reader.at + size].decode()
            reader.at += size
        elif last == _CHILDREN:
            children = reader.number()
        else:
            reader.skip(kind)
        if last < _FIELD_ID:
            smaller, before, after = last, reader.at, reader.at
        elif last == _FIELD_ID:
            after = reader.at
        else:  # logicalType: its header counts from the field before it, so it is written again
            next_id = next_id or last
            rest = rest or bytes([(last - _FIELD_ID) << 4 | kind]) + reader.data[body : reader.at]
            after = reader.at
        last, kind = reader.field(last)
    if is_root:
        return reader.data[start : reader.at]
    if children or name not in ids:
        raise FooterError(f"the file holds column {name!r}, which has no field id in the table")
    stamped = bytes([(_FIELD_ID - smaller) << 4 | _I32]) + _varint(ids[name] << 1)
    return reader.data[start:before] + stamped + rest + reader.data[after : reader.at]


def split_tail(tail: bytes) -> tuple[bytes, bytes]:
    """Split the end of a Parquet file into what precedes the footer, and the footer. FooterError if it was cut."""
    if len(tail) < TAIL_BYTES or tail[-4:] != MAGIC:
        raise FooterError("the stream ended without a Parquet footer: it was cut, or the server failed in the middle")
    (size,) = struct.unpack("<I", tail[-TAIL_BYTES:-4])
    at = len(tail) - TAIL_BYTES - size
    if at < 0:
        raise FooterError(f"the Parquet footer takes {size} bytes, more than are held back")
    return tail[:at], tail[at:-TAIL_BYTES]


def stamp(footer: bytes, ids: Mapping[str, int]) -> tuple[bytes, int]:
    """Return the footer with field ids, and the number of rows that it states.

    Args:
        footer: the thrift bytes of FileMetaData, without length and magic.
        ids: field id by top-level column name; every column of the file must be there.
    """
    reader = _Reader(footer)
    out, rows, copied = bytearray(), -1, 0
    try:
        last, kind = reader.field(0)
        while kind != _STOP:
            if last == 2 and kind == _LIST:
                size, _ = reader.sequence()
                out += footer[copied : reader.at]
                for index in range(size):
                    out += _element(reader, ids, is_root=index == 0)
                copied = reader.at
            elif last == 3:
                rows = reader.number()
            else:
                reader.skip(kind)
            last, kind = reader.field(last)
    except FooterError:
        raise
    except (IndexError, ValueError, RecursionError) as error:
        raise FooterError("the Parquet footer is damaged") from error
    return bytes(out) + footer[copied:], rows


def seal(footer: bytes) -> bytes:
    """Return the footer as a file ends: footer, length, magic."""
    return footer + struct.pack("<I", len(footer)) + MAGIC
