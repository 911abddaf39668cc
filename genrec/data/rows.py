"""Rows of a file, block by block: JSON lines, CSV, separated text, Parquet.

Owns reading and the faults of form: missing and damaged files, malformed and ragged lines, missing
columns, undecodable bytes. Knows the names of columns, not their meaning.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import polars as pl

from genrec.data.faults import Faults, as_note
from genrec.data.layout import Column, Columns, Format, TableFile
from genrec.progress import show_progress
from genrec.recipe import suggest_name

BLOCK_ROWS = 20_000
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_UNDECODED = re.compile("[\ud800-\udfff]")
_MOST_COLUMNS = 12
_JSON = "must be one JSON object"
_LITERAL = "must be one JSON object or Python literal"
_RAGGED = "must have as many fields as there are columns"

Values = Sequence[object]


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some rows of a file: their line numbers, and for each column asked for, its values.

    Columns that the file does not have are absent.
    """

    lines: list[int]
    columns: dict[str, Values]


def read_blocks(file: TableFile, columns: Columns, faults: Faults) -> Iterator[RowBlock]:
    """The rows of a file, in order, in blocks; what is wrong with it goes to `faults`."""
    try:
        yield from _READERS[file.format](file, columns, faults)
    except FileNotFoundError:
        faults.add_file(f"does not exist ({file.path}); check the path in the recipe")
    except IsADirectoryError:
        faults.add_file("is a folder; name the file in it")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.add_file(f"is damaged gzip ({error}); fetch it again")
    except OSError as error:
        faults.add_file(f"cannot be read ({error.strerror or error})")


def source_names(columns: Columns) -> list[str]:
    """Every name in the file that the columns may come from, once, in order."""
    return list(dict.fromkeys(name for column in columns.values() for name in column.names))


def select_values(block: RowBlock, column: Column) -> Values | None:
    """A column's values in a block; None where the file has no such column."""
    present = [name for name in column.names if name in block.columns]
    if not present:
        return None
    if column.combine is None:
        return block.columns[present[0]]
    absent: Values = [None] * len(block.lines)
    parts = [block.columns.get(name, absent) for name in column.names]
    return [column.combine(*values) for values in zip(*parts, strict=True)]


def _check_columns(present: Sequence[str], columns: Columns, faults: Faults) -> bool:
    """Whether every required column is there; those that are not go to `faults`."""
    complete = True
    for name, column in columns.items():
        if column.required and not any(source in present for source in column.names):
            complete = False
            shown = ", ".join(present[:_MOST_COLUMNS])
            hint = suggest_name(column.names[0], present) if present else ""
            did_you_mean = f"; {hint}" if hint.startswith("did") else ""
            faults.add_file(
                f"has no column {' or '.join(map(repr, column.names))} for {name}{did_you_mean} "
                f"It has: {shown}. Map it in the recipe, as in columns: {{{name}: THEIR_NAME}}"
            )
    return complete


def _read_lines(file: TableFile, faults: Faults, newline: str | None) -> Iterator[str]:
    """The lines of a text file, plain or gzipped, with progress shown."""
    encoding = "utf-8-sig" if file.encoding.lower() in {"utf-8", "utf8"} else file.encoding
    with file.path.open("rb") as raw:
        magic = raw.peek(4)[:4]
        if magic.startswith(_ZIP_MAGIC):
            faults.add_file("is a zip archive; unpack it, and name the file inside")
            return
        stream: IO[bytes] = raw
        if magic.startswith(_GZIP_MAGIC):
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
        text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline=newline)
        size_bytes, done = file.path.stat().st_size, 0
        with show_progress(f"reading {file.path.name}", size_bytes, unit="bytes") as advance:
            for number, line in enumerate(text, start=1):
                if not line.isascii() and _UNDECODED.search(line):
                    faults.add_line(f"must be {file.encoding} text (set `encoding`)", number)
                if number % BLOCK_ROWS == 0:
                    advance(raw.tell() - done)
                    done = raw.tell()
                yield line


def _read_jsonl(file: TableFile, columns: Columns, faults: Faults) -> Iterator[RowBlock]:
    names = source_names(columns)
    lines: list[int] = []
    records: list[Mapping[str, object]] = []
    present: list[str] = []

    def take() -> RowBlock:
        block = RowBlock(
            list(lines), {name: [r.get(name) for r in records] for name in names if name in present}
        )
        lines.clear()
        records.clear()
        return block

    parse = _parse_lenient if file.literals else _parse_json
    for number, line in enumerate(_read_lines(file, faults, None), start=1):
        record = parse(line, number, faults) if line.strip() else None
        if record is None:
            continue
        lines.append(number)
        records.append(record)
        if len(records) == BLOCK_ROWS:
            present = _present_keys(records, present)
            if not _check_columns(present, columns, faults):
                return
            yield take()
    present = _present_keys(records, present)
    if records and _check_columns(present, columns, faults):
        yield take()


def _present_keys(records: Sequence[Mapping[str, object]], known: Sequence[str]) -> list[str]:
    """The keys known so far and those of more records; the first record's come first."""
    every = set().union(*records)
    first = [key for key in records[0] if key not in known] if records else []
    return [*known, *first, *sorted(every.difference(known, first))]


def _parse_json(line: str, number: int, faults: Faults) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        faults.add_line(_JSON, number, as_note(f"{error.msg}, column {error.colno}"))
    except (ValueError, RecursionError) as error:
        faults.add_line(_JSON, number, as_note(str(error)))
    else:
        if isinstance(record, dict):
            return record
        faults.add_line(_JSON, number, as_note(f"it is a {type(record).__name__}"))
    return None


def _parse_lenient(line: str, number: int, faults: Faults) -> dict[str, object] | None:
    """JSON, or a Python literal: data only, `literal_eval` runs nothing."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            faults.add_line(_LITERAL, number, as_note(f"{type(error).__name__}"))
            return None
    if isinstance(record, dict):
        return record
    faults.add_line(_LITERAL, number, as_note(f"it is a {type(record).__name__}"))
    return None


def _read_csv(file: TableFile, columns: Columns, faults: Faults) -> Iterator[RowBlock]:
    lines = _read_lines(file, faults, "")
    return _collect_fields(file, _split_quoted(lines, file.separator, faults), columns, faults)


def _read_plain(file: TableFile, columns: Columns, faults: Faults) -> Iterator[RowBlock]:
    rows = (
        (number, line.rstrip("\r\n").split(file.separator))
        for number, line in enumerate(_read_lines(file, faults, None), start=1)
        if line.strip()
    )
    return _collect_fields(file, rows, columns, faults)


def _split_quoted(
    lines: Iterator[str], separator: str, faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line on which each begins; a quoted field may span lines."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    last = 0
    while True:
        try:
            for row in reader:
                if row:
                    yield last + 1, row
                last = reader.line_num
            return
        except csv.Error as error:
            faults.add_line("must be well-formed CSV", last + 1, as_note(str(error)))
            last = reader.line_num


def _collect_fields(
    file: TableFile, rows: Iterator[tuple[int, list[str]]], columns: Columns, faults: Faults
) -> Iterator[RowBlock]:
    header = list(file.header) if file.header is not None else next(rows, (0, []))[1]
    header = [name.strip() for name in header]
    if file.typed_header:
        header = [name.partition(":")[0] for name in header]
    if not header or not _check_columns(header, columns, faults):
        return
    wanted = [name for name in source_names(columns) if name in header]
    places = [header.index(name) for name in wanted]
    lines: list[int] = []
    fields: list[list[str]] = []

    def take() -> RowBlock:
        by_place = list(zip(*fields, strict=True))
        block = RowBlock(list(lines), {n: by_place[p] for n, p in zip(wanted, places, strict=True)})
        lines.clear()
        fields.clear()
        return block

    for number, row in rows:
        if len(row) != len(header):
            faults.add_line(_RAGGED, number, as_note(f"{len(row)} of {len(header)}"))
            continue
        lines.append(number)
        fields.append(row)
        if len(fields) == BLOCK_ROWS:
            yield take()
    if fields:
        yield take()


def _read_parquet(file: TableFile, columns: Columns, faults: Faults) -> Iterator[RowBlock]:
    if not file.path.is_file():
        raise IsADirectoryError if file.path.is_dir() else FileNotFoundError
    try:
        scan = pl.scan_parquet(file.path, glob=False)
        present = scan.collect_schema().names()
        n_rows = int(scan.select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as error:
        faults.add_file(f"is no Parquet file that can be read ({str(error).splitlines()[0]})")
        return
    if not _check_columns(present, columns, faults):
        return
    wanted = [name for name in source_names(columns) if name in present]
    with show_progress(f"reading {file.path.name}", n_rows, unit="rows") as advance:
        for start in range(0, n_rows, BLOCK_ROWS):
            frame = scan.select(wanted).slice(start, BLOCK_ROWS).collect()
            lines = list(range(start + 1, start + frame.height + 1))
            yield RowBlock(lines, {name: frame[name].to_list() for name in wanted})
            advance(frame.height)


_READERS: dict[Format, Callable[[TableFile, Columns, Faults], Iterator[RowBlock]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "plain": _read_plain,
    "parquet": _read_parquet,
}
