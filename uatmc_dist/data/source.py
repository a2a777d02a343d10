"""Tables that a shop has: CSV, TSV, Parquet, JSON lines, RecBole's atomic files; every cell as text.

As text, because an id may have leading zeros, and because a bad cell can then be named by its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.json as pj
import pyarrow.parquet as pq

from uatmc_dist.errors import UserError

_TABS = (".tsv", ".inter", ".item")
_KNOWN = "CSV, TSV, Parquet, JSON lines (.jsonl) and RecBole's .inter and .item"
DATE_FORMATS = {
    "%Y-%m-%d": r"\d{4}-\d{1,2}-\d{1,2}",
    "%Y-%m-%d %H:%M:%S": r"\d{4}-\d{1,2}-\d{1,2} \d{1,2}:\d{2}:\d{2}",
    "%Y-%m-%dT%H:%M:%S": r"\d{4}-\d{1,2}-\d{1,2}T\d{1,2}:\d{2}:\d{2}",
    "%Y/%m/%d": r"\d{4}/\d{1,2}/\d{1,2}",
    "%Y%m%d": r"(19|20)\d{6}",
    "%d.%m.%Y": r"\d{1,2}\.\d{1,2}\.\d{4}",
    "%d/%m/%Y": r"\d{1,2}/\d{1,2}/\d{4}",
    "%m/%d/%Y": r"\d{1,2}/\d{1,2}/\d{4}",
}
"""strptime's formats, and what a cell of each looks like."""
_FRACTION_OR_ZONE = r"(\.\d+)?(Z|[+-]00:?00| UTC)?$"


@dataclass(frozen=True)
class Source:
    """A table as it was read; `columns` are text, null where a cell is empty."""

    path: Path
    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def text(self, column: str) -> pa.Array:
        """One column, whitespace around cells cut off; null where nothing is left."""
        text = pc.utf8_trim_whitespace(self.table[column]).combine_chunks()
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)

    def ids(self, column: str) -> pa.Array:
        """A column without empty cells. Raises UserError naming the first row that has one."""
        text = self.text(column)
        if text.null_count:
            row = int(np.argmax(text.is_null().to_numpy(zero_copy_only=False)))
            raise UserError(f"{self.path}: row {row + 1}: {column} is empty; fill it in or leave the row out")
        return text

    def column(self, given: str | None, guesses: Sequence[str], what: str, option: str) -> str:
        """The column that was named, else the first guess that is there. UserError where there is none."""
        found = self.optional_column(given, guesses, option)
        if found is None:
            raise UserError(
                f"{self.path}: no column for {what} (found: {', '.join(self.columns)}); name it with {option}"
            )
        return found

    def optional_column(self, given: str | None, guesses: Sequence[str], option: str) -> str | None:
        if given is not None:
            if given not in self.columns:
                raise UserError(f"{self.path}: {option} {given}: no such column (found: {', '.join(self.columns)})")
            return given
        by_name = {plain(name): name for name in reversed(self.columns)}
        return next((by_name[guess] for guess in guesses if guess in by_name), None)


def plain(name: str) -> str:
    """userID, user_id and user_id:token (RecBole) are one name."""
    return "".join(sign for sign in name.partition(":")[0].lower() if sign.isalnum())


def read_source(path: Path) -> Source:
    """Raises UserError, naming the file and the mend, for what cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a table ({_KNOWN})")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if path.stat().st_size == 0:
        raise UserError(f"{path}: an empty file; give a table ({_KNOWN})")
    try:
        if suffix == ".parquet":
            table = pq.read_table(path)
        elif suffix in (".jsonl", ".json", ".ndjson"):
            table = pj.read_json(path)
        elif suffix in (".csv", ".txt", *_TABS):
            table = _read_csv(path, "\t" if suffix in _TABS else _delimiter(path))
        else:
            raise UserError(f"{path}: {suffix or 'no'} suffix; what is read: {_KNOWN}")
        texts = [_as_text(column) for column in table.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: truncated, or not what its name says ({why}); write it again, in UTF-8") from None
    if len(set(table.column_names)) < len(table.column_names):
        raise UserError(f"{path}: two columns have one name ({', '.join(table.column_names)}); rename one")
    if table.num_rows == 0:
        raise UserError(f"{path}: a header and no row")
    return Source(path, pa.table(dict(zip(table.column_names, texts, strict=True))))


def _delimiter(path: Path) -> str:
    """Of a CSV: the one that its header has most of; spreadsheets write semicolons in half of the world."""
    with pa.input_stream(str(path)) as file:  # knows .gz
        header = file.read(1 << 16).decode("utf-8", errors="replace").splitlines()[0]
    return max(",;\t|", key=header.count)


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    # Quotes mean nothing in atomic files and TSVs, and titles have inches in them.
    is_quoted = delimiter != "\t"
    parse = pv.ParseOptions(delimiter=delimiter, newlines_in_values=is_quoted, quote_char='"' if is_quoted else False)
    with pv.open_csv(path, parse_options=parse) as file:
        names = file.schema.names
    as_text = pv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
    return pv.read_csv(path, parse_options=parse, convert_options=as_text)


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        cells = ("; ".join(map(str, cell)) if cell else None for cell in column.to_pylist())
        return pa.chunked_array([pa.array(cells, pa.string())])
    if pa.types.is_floating(kind):
        # Whole numbers with missing cells come as floats; 108775015.0 is no id.
        whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        if whole and (pc.max(pc.abs(column)).as_py() or 0) < 2**53:
            column = column.cast(pa.int64())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    if pa.types.is_struct(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    return column.cast(pa.string())


def timestamps(source: Source, column: str) -> np.ndarray:
    """Seconds since 1970, int64. Numbers are seconds, or milli-, micro- or nanoseconds where they would be centuries
    away; dates are of one format of DATE_FORMATS. Raises UserError naming the row that is neither."""
    text = source.ids(column)
    numeric = pc.match_substring_regex(text, r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$").to_numpy(zero_copy_only=False)
    are_dates = pc.match_substring_regex(text, f"^{DATE_FORMATS['%Y%m%d']}$").to_numpy(zero_copy_only=False)
    if numeric.all() and not are_dates.all():
        values = pc.cast(text, pa.float64()).to_numpy()
        magnitude = np.abs(values).max()
        unit = next((unit for unit in (1, 1e3, 1e6, 1e9) if magnitude / unit < 1e11), None)
        if unit is None:
            raise UserError(f"{source.path}: {column} {values.max():g} is no time; seconds since 1970 are, and dates")
        return np.floor(values / unit).astype(np.int64)
    return _dates(source, column, text)


def parse_date(text: str, option: str) -> int:
    """One date of an option as seconds since 1970."""
    source = Source(Path(option), pa.table({"date": [text]}))
    return int(timestamps(source, "date")[0])


def _dates(source: Source, column: str, text: pa.Array) -> np.ndarray:
    read = {form: _strptime(text, form) for form in DATE_FORMATS}
    whole = [seconds for seconds, known in read.values() if known.all()]
    if any(not np.array_equal(whole[0], other) for other in whole[1:]):
        example = text[0].as_py()
        raise UserError(f"{source.path}: {column}: {example!r} is a day of two formats; write dates as 2026-01-31")
    if whole:
        return whole[0]
    best = max(read, key=lambda form: read[form][1].sum())
    known = read[best][1]
    row, others = int(np.argmin(known)), f", others are as {best}" if known.any() else ""
    raise UserError(
        f"{source.path}: row {row + 1}: {column} is {text[row].as_py()!r}{others}; write all as 2026-01-31, as "
        "2026-01-31 12:00:00 (UTC) or as seconds since 1970"
    )


def _strptime(text: pa.Array, form: str) -> tuple[np.ndarray, np.ndarray]:
    """(seconds since 1970, which cells are of this format)."""
    end = _FRACTION_OR_ZONE if "%S" in form else "$"
    fits = pc.match_substring_regex(text, f"^{DATE_FORMATS[form]}{end}").to_numpy(zero_copy_only=False)
    if not fits.any():
        return np.zeros(len(text), dtype=np.int64), fits
    cut = pc.replace_substring_regex(text, _FRACTION_OR_ZONE, "") if "%S" in form else text
    parsed = pc.strptime(cut, form, "s", error_is_null=True)
    known = fits & parsed.is_valid().to_numpy(zero_copy_only=False)
    return pc.fill_null(parsed.cast(pa.int64()), 0).to_numpy(), known


def numbers(source: Source, column: str) -> np.ndarray:
    """float64. Raises UserError naming the row that is not a number."""
    text = source.ids(column)
    is_number = pc.match_substring_regex(text, r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$").to_numpy(zero_copy_only=False)
    if not is_number.all():
        row = int(np.argmin(is_number))
        raise UserError(f"{source.path}: row {row + 1}: {column} is {text[row].as_py()!r}; a number is needed")
    return pc.cast(text, pa.float64()).to_numpy()
