"""Stamp Iceberg's field ids into the footer of a Parquet file that ClickHouse encoded.

Without them readers match columns by name, and a rename would lose data. Only the schema elements change: every
other byte of the footer is copied, so nothing that the encoder wrote can be lost or spelled in another way.

Sources: Thrift compact protocol (thrift-compact-protocol.md), parquet.thrift: FileMetaData {1: version, 2: schema,
3: num_rows, ...}, SchemaElement {3: repetition_type, 4: name, 5: num_children, 6: converted_type, 9: field_id,
10: logicalType}, LogicalTypes.md (lists and maps).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAGIC = b"PAR1"
TAIL_BYTES = 8  # length of the footer, magic

_STOP, _TRUE, _FALSE, _I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_REPETITION, _NAME, _CHILDREN, _CONVERTED, _FIELD_ID, _LOGICAL = 3, 4, 5, 6, 9, 10
_REPEATED = 2
# By Iceberg's type: what the footer calls a field that ClickHouse calls something else. Of text and bytes it calls both
# text; a UUID is written as bytes of no kind, and is number 14 of parquet.thrift's LogicalType, an empty struct.
MARKS: Mapping[str, bytes] = {"binary": b"", "uuid": bytes([14 << 4 | _STRUCT, _STOP, _STOP])}


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


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a thrift struct: `body` is its bytes behind the header."""

    number: int
    kind: int
    body: bytes

    @property
    def int(self) -> int:
        return _Reader(self.body).number()


def _fields(reader: _Reader) -> dict[int, _Field]:
    found: dict[int, _Field] = {}
    number, kind = reader.field(0)
    while kind != _STOP:
        start = reader.at
        reader.skip(kind)
        found[number] = _Field(number, kind, reader.data[start : reader.at])
        number, kind = reader.field(number)
    return found


def _struct(fields: Iterable[_Field]) -> bytes:
    """Write a struct; a field's header counts from the field before it."""
    out, last = bytearray(), 0
    for field in sorted(fields, key=lambda each: each.number):
        delta = field.number - last
        out += bytes([delta << 4 | field.kind]) if 0 < delta < 16 else bytes([field.kind]) + _zigzag(field.number)
        out += field.body
        last = field.number
    return bytes(out) + bytes([_STOP])


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _stamp_schema(reader: _Reader, size: int, ids: Mapping[str, int], marked: Mapping[str, str]) -> bytes:
    """Copy the schema, a tree in depth-first order, with field ids.

    Nested columns have Parquet's standard form: a group inside a list or map, the only repeated one, stands between it
    and its elements and has no id; Iceberg names what is inside after the list or map.
    """
    out = bytearray()
    open_groups: list[tuple[str, int]] = []  # path, children still to come
    for index in range(size):
        start = reader.at
        fields = _fields(reader)
        children = fields[_CHILDREN].int if _CHILDREN in fields else 0
        if index == 0:
            out += reader.data[start : reader.at]
            open_groups.append(("", children))
            continue
        while open_groups and open_groups[-1][1] <= 0:
            open_groups.pop()
        if not open_groups or _NAME not in fields:
            raise FooterError("the Parquet footer is damaged: its schema is no tree")
        path, left = open_groups[-1]
        open_groups[-1] = (path, left - 1)
        is_between = bool(path) and _REPETITION in fields and fields[_REPETITION].int == _REPEATED and children > 0
        if not is_between:
            path = f"{path}.{_text(fields[_NAME])}".removeprefix(".")
            if path not in ids:
                raise FooterError(f"the file holds column {path!r}, which has no field id in the table")
            fields[_FIELD_ID] = _Field(_FIELD_ID, _I32, _zigzag(ids[path]))
        if path in marked and not children:
            fields.pop(_CONVERTED, None)
            fields.pop(_LOGICAL, None)
            if mark := MARKS[marked[path]]:
                fields[_LOGICAL] = _Field(_LOGICAL, _STRUCT, mark)
        out += _struct(fields.values())
        if children > 0:
            open_groups.append((path, children))
    return bytes(out)


def _text(field: _Field) -> str:
    reader = _Reader(field.body)
    size = reader.varint()
    return field.body[reader.at : reader.at + size].decode()


def split_tail(tail: bytes) -> tuple[bytes, bytes]:
    """Split the end of a Parquet file into what precedes the footer, and the footer. FooterError if it was cut."""
    if len(tail) < TAIL_BYTES or tail[-4:] != MAGIC:
        raise FooterError("the stream ended without a Parquet footer: it was cut, or the server failed in the middle")
    (size,) = struct.unpack("<I", tail[-TAIL_BYTES:-4])
    at = len(tail) - TAIL_BYTES - size
    if at < 0:
        raise FooterError(f"the Parquet footer takes {size} bytes, more than are held back")
    return tail[:at], tail[at:-TAIL_BYTES]


def stamp(footer: bytes, ids: Mapping[str, int], marked: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the footer with field ids, and the number of rows that it states.

    Args:
        footer: the thrift bytes of FileMetaData, without length and magic.
        ids: field id by Iceberg's name, `a`, `a.element`, `m.key`, `t.field`; every field of the file must be there.
        marked: Iceberg's type, one of MARKS, of the fields that ClickHouse marks as something else.
    """
    reader = _Reader(footer)
    out, rows, copied = bytearray(), -1, 0
    try:
        last, kind = reader.field(0)
        while kind != _STOP:
            if last == 2 and kind == _LIST:
                size, _ = reader.sequence()
                out += footer[copied : reader.at]
                out += _stamp_schema(reader, size, ids, marked)
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
