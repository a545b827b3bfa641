"""The registry of runs: an index, in SQL, of what the run directories and processes say.

What does not belong here: launching, and protobuf.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from accord.errors import AlreadyExistsError, NotFoundError, UnavailableError
from accord.runspec import RunSpec, parse_spec

metadata = sql.MetaData()
runs = sql.Table(
    "runs",
    metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("name", sql.String(128), nullable=False, unique=True),
    sql.Column("request_id", sql.String(128), nullable=False, unique=True),
    sql.Column("payload_digest", sql.String(64), nullable=False),
    sql.Column("spec", sql.Text, nullable=False),
    sql.Column("state", sql.String(32), nullable=False, index=True),
    sql.Column("message", sql.Text, nullable=False),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("directory", sql.Text, nullable=False),
    sql.Column("create_time", sql.Float, nullable=False),
    sql.Column("start_time", sql.Float),
    sql.Column("end_time", sql.Float),
    sql.Column("cancel_time", sql.Float),
    sql.Column("exit_code", sql.Integer),
)
_PATIENCE: Mapping[str, int] = {  # libpq's own is to wait for ever for a server that has gone without a word
    "connect_timeout": 10, "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 10, "keepalives_count": 2, "tcp_user_timeout": 30_000,
}  # fmt: skip
_STATEMENT_MILLISECONDS = 30_000
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
ACTIVE = ("STARTING", "RUNNING", "CHECKPOINTING", "CANCELLING")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as the registry knows it; times are Unix seconds."""

    sequence: int
    name: str
    request_id: str
    payload_digest: str
    spec: RunSpec
    state: str
    message: str
    attempts: int
    directory: str
    create_time: float
    start_time: float | None
    end_time: float | None
    cancel_time: float | None
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ENDED


class Registry:
    """Runs by name and by request id, in a database that migrations have brought up to date.

    Args:
        url: SQLAlchemy URL.

    Raises:
        UnavailableError: the database does not answer, or lets nobody in.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        try:
            migrate(self._engine)
        except sql.exc.OperationalError as error:
            self._engine.dispose()
            place, reason = _without_credentials(self._engine.url), " ".join(str(error.orig).split())
            raise UnavailableError(f"the registry's database {place} cannot be used: {reason}", field="database") from error

    def create(self, name: str, request_id: str, spec: RunSpec, directory: str) -> tuple[RunRecord, bool]:
        """The run of a request id and whether it is new; the same id and specification give the first one.

        Raises:
            AlreadyExistsError: the id was used with another specification.
        """
        row = {
            "name": name, "request_id": request_id, "payload_digest": spec.digest, "spec": json.dumps(spec.as_given),
            "state": "QUEUED", "message": "", "attempts": 0, "directory": directory, "create_time": time.time(),
        }  # fmt: skip
        try:
            with self._engine.begin() as connection:
                connection.execute(runs.insert().values(**row))
            return self.get(name), True
        except sql.exc.IntegrityError:
            known = self._one(runs.c.request_id == request_id)
            if known is None or known.payload_digest != spec.digest:
                raise AlreadyExistsError(f"request_id {request_id!r} was used with another specification", field="request_id") from None
            return known, False

    def get(self, name: str) -> RunRecord:
        """The run of that name.

        Raises:
            NotFoundError: there is none.
        """
        found = self._one(runs.c.name == name)
        if found is None:
            raise NotFoundError(f"there is no run {name!r}", field="name")
        return found

    def find(self, states: Sequence[str] = (), *, before: int | None = None, limit: int | None = None) -> list[RunRecord]:
        """Runs in some states (all where empty), newest first, of a sequence number below `before`."""
        query = sql.select(runs).order_by(runs.c.sequence.desc())
        if states:
            query = query.where(runs.c.state.in_(states))
        if before is not None:
            query = query.where(runs.c.sequence < before)
        if limit is not None:
            query = query.limit(limit)
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def update(self, record: RunRecord, **values: Any) -> RunRecord:
        """Writes some columns and returns the record with them. A NUL becomes U+FFFD: PostgreSQL takes none, and messages hold what pods said."""
        values = {key: value.replace("\x00", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value for key, value in values.items()}
        with self._engine.begin() as connection:
            connection.execute(runs.update().where(runs.c.name == record.name).values(**values))
        return replace(record, **values)

    def respecify(self, record: RunRecord, spec: RunSpec) -> RunRecord:
        """Gives a run another specification; the digest of what its request id asked for stays."""
        self.update(record, spec=json.dumps(spec.as_given))
        return replace(record, spec=spec)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _one(self, condition: Any) -> RunRecord | None:
        with self._engine.connect() as connection:
            row = connection.execute(sql.select(runs).where(condition)).mappings().first()
        return None if row is None else _record(row)


def open_engine(url: str) -> Engine:
    """An engine; SQLite in WAL with full synchronisation, so that what was acknowledged survives a kill. PostgreSQL is not waited for without end: a
    server that has gone is noticed within 30 s, unless the URL's query says otherwise."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    known = sql.make_url(url)
    is_libpq = known.get_backend_name() == "postgresql" and known.get_driver_name().startswith("psycopg")
    patience = {name: value for name, value in _PATIENCE.items() if name not in known.query} if is_libpq else {}
    engine = sql.create_engine(url, pool_pre_ping=True, connect_args=patience)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
                connection.execute(f"PRAGMA {pragma}")

    if engine.dialect.name == "postgresql" and "statement_timeout" not in str(known.query.get("options", "")):

        @event.listens_for(engine, "begin")
        def _timeout(connection: Connection) -> None:  # of each transaction: a pooler such as PgBouncer takes no options at the start of a connection
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_STATEMENT_MILLISECONDS}")

    return engine


def migrate(engine: Engine) -> None:
    """Brings the database to the newest schema by Alembic's migrations."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _without_credentials(url: sql.URL) -> str:
    return sql.URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def _record(row: Any) -> RunRecord:
    values = dict(row)
    values["spec"] = parse_spec(json.loads(values["spec"]), source=f"registry: {values['name']}")
    return RunRecord(**values)
