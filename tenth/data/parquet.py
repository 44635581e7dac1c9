"""Documents of a Parquet file, batch by batch. Needs pyarrow, which the extra `train` brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenth.data.document import Document, valid_text
from tenth.errors import FileFormatError, MachineError, RequestError

_ROWS = 256  # read at once


def read_parquet(path: Path, text_key: str, domain_key: str | None, domain: str) -> Iterator[Document]:
    """One document a row, row group by row group; FileFormatError names a broken file, a missing column, a bad row."""
    parquet = _pyarrow()
    columns = [text_key] if domain_key is None else list(dict.fromkeys((text_key, domain_key)))
    with _readable(path), parquet.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow, columns)
        row = read = 0
        for group in range(file.num_row_groups):
            share = _group_bytes(file.metadata.row_group(group)) / max(file.metadata.row_group(group).num_rows, 1)
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                texts = batch.column(text_key).to_pylist()
                domains = [domain] * len(texts) if domain_key is None else batch.column(domain_key).to_pylist()
                for text, kind in zip(texts, domains, strict=True):
                    where = f"{path}: row {row}"
                    name = kind if domain_key is None else valid_text(kind, domain_key, where)
                    yield Document(valid_text(text, text_key, where), name, where, int(read + share))
                    row, read = row + 1, read + share


def _group_bytes(group: Any) -> int:
    return sum(int(group.column(number).total_compressed_size) for number in range(group.num_columns))


def _check_columns(path: Path, schema: Any, columns: list[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise FileFormatError(f"{path}: has no column {column!r}; its columns are: {', '.join(schema.names[:20])}")
        if schema.names.count(column) > 1:
            raise FileFormatError(f"{path}: has two columns {column!r}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow  # type: ignore[import-untyped, import-not-found, unused-ignore]

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise FileFormatError(f"{path}: cannot be read as Parquet: {reason}") from None
    except OSError as error:  # pyarrow's own have no number, the system's do
        reason = error.strerror or " ".join(str(error).split())[:150]
        kind = FileFormatError if error.strerror is None else RequestError
        raise kind(f"{path}: cannot be read as Parquet: {reason}") from None


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise MachineError("Parquet files need pyarrow: `pip install 'tenth[train]'` brings it") from None
    return pyarrow.parquet
