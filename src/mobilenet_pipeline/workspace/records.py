"""Append-only records: files of this workspace, or one table for all workspaces, of which the files are copies.

MOBILENET_PIPELINE_RECORDS names the database as an SQLAlchemy URL: PostgreSQL, or an SQLite file on a shared disk. A
record is called by its file, `records/RECIPE/KIND.jsonl`; it has one row of the table for every line. Two workspaces
that append at once cannot both write the same number: the slower one reads again.
"""

import fcntl
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet_pipeline.workspace import files, paths

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table

SETTING = "MOBILENET_PIPELINE_RECORDS"
TABLE = "mobilenet_pipeline_records"
MERGED = ("test_reads", "comparisons")
"""Kinds of which the lines of a workspace that was on its own are added to the shared record."""
_ROOM = 2**16
"""Bytes that must be free for a decision; a line has a few hundred."""
Check = Callable[[Path, list[str]], object]
"""Raises RecordError if lines, which are those of a file at a path, are damaged."""
_ANSWER_SECONDS = 5
_WAIT_SECONDS = 0.2
_PATIENCE_SECONDS = 300
"""How long a decision waits for one of another workspace."""
_LOST_SECONDS = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""Settings of a session by which PostgreSQL notices, in about a minute, that its machine is lost."""
_REFUSED = ("authentication failed", "permission denied", "no pg_hba.conf entry", "no password supplied")
_IDENTITY = ("", "identity")
"""The recipe and kind of the row that holds the database's UUID."""
_log = logging.getLogger(__name__)


class RecordError(ValueError):
    """A record is damaged, was changed, or differs from the shared one."""


class RecordsAway(ConnectionError):
    """The database of the shared records does not answer, or refuses this user. The message has the remedy."""


def is_refused(message: str) -> bool:
    """Return whether a server has answered, and refuses the login or the right: waiting changes nothing."""
    return any(words in message for words in _REFUSED)


def shared() -> str | None:
    """Return the address of the shared records without user name and password, None if this workspace has its own."""
    url = os.environ.get(SETTING)
    return files.shown(url) if url else None


def identity() -> str | None:
    """Return the UUID of the database of the shared records, None if this workspace has its own records."""
    if not shared():
        return None
    place = Path(*_IDENTITY)
    if not (found := _shared_lines(place)):
        _insert(place, [uuid.uuid4().hex], 0)
        found = _shared_lines(place)  # another workspace may have been faster
    return found[0]


def are_json(path: Path, lines: list[str]) -> None:
    """Raise RecordError, naming the line, if one of a file's lines is not JSON."""
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            raise RecordError(
                f"{path}, line {number} is damaged: {line[:80]!r}; restore the file, or correct that line"
            ) from None


def lines(path: Path, copy: bool = False, check: Check = are_json) -> list[str]:
    """Return all lines of the record at `path`, the oldest first, and bring its file up to date.

    With `copy`, the file counts if the database does not answer. Raises RecordsAway otherwise, and RecordError if the
    file has lines that the shared record cannot take in; `check` is asked first.
    """
    own = own_lines(path)
    if not shared():
        return own
    try:
        everything = _shared_lines(path)
    except RecordsAway:
        if copy:
            return own
        raise
    if own != everything[: len(own)]:
        everything = _join(path, own, everything, check)
    elif not everything[len(own) :]:
        return own
    _write_copy(path, everything)
    return everything


def own_lines(path: Path) -> list[str]:
    """Return the lines of the file alone. Raises RecordError if it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not text in UTF-8 ({error}); restore the file") from None
    # Not splitlines(): a person's text may have characters that Unicode calls line ends.
    return text.removesuffix("\n").split("\n") if text else []


def agrees(path: Path) -> bool:
    """Return whether the shared record can take in the file at `path`, or is further than the file; changes nothing."""
    own, everything = own_lines(path), _shared_lines(path) if shared() else []
    return path.stem in MERGED or own[: len(everything)] == everything[: len(own)]


def append(path: Path, next_line: Callable[[list[str]], str], check: Check = are_json) -> None:
    """Append `next_line(lines so far)` to the record: to the database if the records are shared, else to the file.

    Raises OSError if the line cannot be written there; the record is then as it was. `check` is that of `lines`.
    """
    if not shared():
        files.append_line(path, next_line(own_lines(path)))
        return
    while True:
        before = lines(path, check=check)
        line = next_line(before)
        if _insert(path, [line], len(before)):
            _write_copy(path, [*before, line])
            return


def check_room(path: Path) -> None:
    """Raise OSError if no line can be added to the file at `path`, as on a full disk; shared records are not tried."""
    if shared():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.exists():
            path.open("ab").close()
        with tempfile.TemporaryFile(dir=path.parent) as trial:
            trial.write(bytes(_ROOM))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_copy(path: Path, everything: list[str]) -> None:
    """Write the file of a shared record as a whole: a line that is added to it may be there already.

    Another process may have read the database in between. A file that cannot be written is a warning, for the next
    reading writes it.
    """
    try:
        files.write_text(path, "".join(f"{line}\n" for line in everything))
    except OSError as error:
        _log.warning("the copy of the shared record %s is not up to date: %s", path, error)


def of_kind(kind: str, workspace: Path = paths.HERE) -> list[Path]:
    """Return the paths of all recipes' records of this kind, also of those that only other workspaces have written."""
    folder = paths.records_folder(workspace)
    found = {path.parent.name for path in folder.glob(f"*/{kind}.jsonl")} | (_recipes(kind) if shared() else set())
    return [folder / recipe / f"{kind}.jsonl" for recipe in sorted(found)]


@contextmanager
def exclusively(name: str, workspace: Path = paths.HERE, everywhere: bool = True) -> Iterator[None]:
    """Hold the lock `name` during the `with` body: among all workspaces if the records are shared, else in this one.

    Without `everywhere`, it is this workspace's in any case. It is freed when its process ends, and a minute or two
    after its machine is lost. Raises RecordsAway if the database does not answer, or if another workspace has held the
    lock for minutes.
    """
    folder = paths.records_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with _lock_of_all(name) if everywhere and shared() else nullcontext():
            yield


def _join(path: Path, own: list[str], everything: list[str], check: Check) -> list[str]:
    """Add the lines that only this workspace has to the shared record, and return all lines.

    That is possible if the order does not matter, or if the shared record is the beginning of the workspace's.
    """
    more = [line for line in own if line not in everything] if path.stem in MERGED else own[len(everything) :]
    if path.stem not in MERGED and own[: len(everything)] != everything:
        raise RecordError(
            f"{path} differs from the shared record of {path.parent.name} at {shared()} ({SETTING}); move the file "
            "away to follow the shared record, which stays as it is"
        )
    check(path, own)
    if not _insert(path, more, len(everything)):
        return lines(path, check=check)
    return everything + more


@cache
def _engine(url: str) -> "tuple[Engine, Table]":
    """Return a connection pool and the table, which is created if necessary."""
    import sqlalchemy
    from sqlalchemy import Column, Integer, MetaData, String, Table, Text

    try:
        kind = sqlalchemy.make_url(url).get_backend_name()
        if kind not in ("postgresql", "sqlite"):
            raise ValueError(f"{kind} is not supported")
        limit = {"connect_timeout": _ANSWER_SECONDS} if kind == "postgresql" else {"timeout": _ANSWER_SECONDS}
        engine = sqlalchemy.create_engine(url, connect_args=limit, pool_pre_ping=True)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ValueError, ImportError) as error:
        raise ValueError(
            f"{SETTING}={files.shown(url)}: {error}; give an address such as postgresql://USER@HOST/DATABASE, or "
            "sqlite:////PATH/records.db on a disk that all workspaces share"
        ) from None
    table = Table(
        TABLE,
        MetaData(),
        Column("recipe", String(200), primary_key=True),
        Column("kind", String(50), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("line", Text, nullable=False),
    )
    with _answering():
        if not sqlalchemy.inspect(engine).has_table(TABLE):  # PostgreSQL asks for more rights than to use a table
            try:
                _create(engine, table)
            except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
                _create(engine, table)  # another workspace has just created it
    return engine, table


def _create(engine: "Engine", table: "Table") -> None:
    from sqlalchemy.schema import CreateTable

    with engine.begin() as connection:
        connection.execute(CreateTable(table, if_not_exists=True))


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the database's errors in the `with` body into RecordsAway with the remedy."""
    from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        cause, place = " ".join(str(error.orig).split())[:200], f"the shared records at {shared()} ({SETTING})"
        remedy = "start that database, or correct the setting"
        if isinstance(error, ProgrammingError):
            remedy = f"their user needs the right to create the table {TABLE}, or to select and insert its rows"
        elif is_refused(cause):
            remedy = "correct user, password or database, for example in ~/.pgpass"
        raise RecordsAway(f"{place} do not answer ({cause}); {remedy}") from None


def _shared_lines(path: Path) -> list[str]:
    from sqlalchemy import select

    engine, table = _engine(os.environ[SETTING])
    query = select(table.c.number, table.c.line).where(_is(table, path)).order_by(table.c.number)
    with _answering(), engine.connect() as connection:
        rows = connection.execute(query).all()
    if [row.number for row in rows] != list(range(len(rows))):
        raise RecordError(
            f"the shared record {path.parent.name}/{path.stem} at {shared()} lacks a line; restore the database"
        )
    return [row.line for row in rows]


def _insert(path: Path, new: list[str], number: int) -> bool:
    """Add the lines from `number` on, all or none; return False if another workspace has written that number."""
    from sqlalchemy.exc import IntegrityError

    engine, table = _engine(os.environ[SETTING])
    rows = [
        {"recipe": path.parent.name, "kind": path.stem, "number": number + index, "line": line}
        for index, line in enumerate(new)
    ]
    try:
        with _answering(), engine.begin() as connection:
            if rows:
                connection.execute(table.insert(), rows)
    except IntegrityError:
        return False
    return True


def _recipes(kind: str) -> set[str]:
    from sqlalchemy import select

    engine, table = _engine(os.environ[SETTING])
    with _answering(), engine.connect() as connection:
        return set(connection.execute(select(table.c.recipe).where(table.c.kind == kind).distinct()).scalars())


def _is(table: "Table", path: Path) -> Any:
    return (table.c.recipe == path.parent.name) & (table.c.kind == path.stem)


@contextmanager
def _lock_of_all(name: str) -> Iterator[None]:
    """Lock among all workspaces: an advisory lock of PostgreSQL, a file beside the database of SQLite."""
    engine, _ = _engine(os.environ[SETTING])
    if engine.dialect.name == "sqlite":
        with Path(f"{engine.url.database}.{name}").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    from sqlalchemy import text

    key, began, warned = {"name": f"{TABLE} {name}"}, time.monotonic(), False
    with _answering():
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        with _answering():
            for setting, value in _LOST_SECONDS.items():
                connection.execute(text(f"SET {setting} = {value}"))
        while True:
            with _answering():
                if connection.execute(text("SELECT pg_try_advisory_lock(hashtext(:name))"), key).scalar():
                    break
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS:
                raise RecordsAway(
                    f"another workspace has held the lock {name} for {waited / 60:.0f} minutes; try later"
                )
            if not warned and waited > _ANSWER_SECONDS:
                _log.warning("another workspace decides on %s; waiting until it ends", name)
                warned = True
            time.sleep(_WAIT_SECONDS)
        yield
    finally:
        connection.invalidate()  # closing the connection frees the lock, even if the server has gone
        connection.close()
