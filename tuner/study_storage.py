"""The database that Optuna keeps a run in: opened where it is whole, and what goes wrong with it told in one line."""

import json
import os
import platform
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import optuna
from alembic.util import CommandError
from optuna.artifacts import ArtifactMeta
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from sqlalchemy import URL, Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from tuner.errors import ConfigError, TunerError
from tuner.storage_url import HIDDEN, shown_storage

# What Optuna and SQLAlchemy raise of a damaged database; a RuntimeError of one that another Optuna made.
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, CommandError)
STORAGE_ERRORS = (
    *(ArgumentError, SQLAlchemyError, StorageInternalError, DuplicatedStudyError, ImportError),
    *(*_DAMAGE, RuntimeError),
)
# How long a database that another process has locked is waited for: a trial may have taken hours.
LOCKED_S = 60.0

# What libpq is told where the URL does not say it: firewalls forget a connection that is silent for a trial's hours.
_LIBPQ = {"connect_timeout": 30, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 6}
# And the server, of the connection that has the lock: it notices a machine that is gone after two minutes, not hours.
_KEEP_ALIVE = """
    SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES
        ('tcp_keepalives_idle', '60'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '6'),
        ('idle_session_timeout', '0')
    ) AS wanted (name, value) USING (name)
"""
# A number of our own, and the schema that holds Optuna's tables.
_LOCK = 0x74756E65
_TAKE = f"SELECT pg_try_advisory_lock({_LOCK}, oid::int) FROM pg_namespace WHERE nspname = current_schema()"
_GIVE_BACK = "SELECT pg_advisory_unlock_all()"
_WHOSE = f"""
    SELECT application_name FROM pg_stat_activity
    JOIN pg_locks ON pg_locks.pid = pg_stat_activity.pid AND pg_locks.database = pg_stat_activity.datid
    JOIN pg_namespace ON pg_namespace.oid = objid AND nspname = current_schema()
    WHERE datname = current_database() AND locktype = 'advisory' AND classid = {_LOCK} AND objsubid = 2 AND granted
"""
_INSTALL = "pip install 'tuner[postgresql]'"
# URL without password -> the password that this process was given; what is written of a run has none.
_passwords: dict[URL, str] = {}


@contextmanager
def storage_errors(what: str = "the run's record cannot be used") -> Iterator[None]:
    """A storage that fails, for instance in mid-run on a full disk, is told in one line."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise TunerError(f"{what}: {first_line(error)}") from error


def sqlite_file(storage: str) -> Path | None:
    """The file that a storage is, links followed; None for a server and for memory. Raises ConfigError as `connect`."""
    url = _address(storage)
    path = (url.database or "").removeprefix("file:")
    return Path(path).resolve() if url.get_backend_name() == "sqlite" and path not in ("", ":memory:") else None


@contextmanager
def only_driver_on(storage: str) -> Iterator[None]:
    """Keep a storage on PostgreSQL for this process, wherever others run; storages of other kinds are not kept.

    The lock is the server's and goes with the connection that asked for it, however the process ends; nothing stale is
    left. What the connection is called says whose it is. Raises TunerError when the server cannot be used, and when
    another process has the storage, with its number, machine and start.
    """
    url = _address(storage)
    if url.get_backend_name() != "postgresql":
        yield
        return
    shown = shown_storage(storage)
    # Without a pool nothing is rolled back on closing: the server may be gone.
    settings: dict[str, Any] = {"poolclass": NullPool, "pool_reset_on_return": None, "isolation_level": "AUTOCOMMIT"}
    with storage_errors(f"{shown}: cannot be used as storage"):
        connection = create_engine(url, **settings, **_connect_args(url)).connect()
    with closing(connection):
        with storage_errors(f"{shown}: cannot be used as storage"):
            # Said first, so that whoever has the lock has said it.
            name = f"tuner {os.getpid()} {int(time.time())} {platform.node()}"
            connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": name})
            connection.execute(text(_KEEP_ALIVE))
            is_taken = connection.scalar(text(_TAKE)) is False
            whose = _whose(connection) if is_taken else ""
        if is_taken:
            raise TunerError(f"{shown}: another run works on it{whose}; wait for it, or name another --storage")
        try:
            yield
        finally:
            # Closing gives it back too, some time later.
            with suppress(SQLAlchemyError):
                connection.execute(text(_GIVE_BACK))


def _whose(connection: Connection) -> str:
    """Who has the lock, for an error message; nothing where it was given back meanwhile."""
    found = re.fullmatch(r"tuner (\d+) (\d+) (.*)", str(connection.scalar(text(_WHOSE))))
    if found is None:
        return ""
    process, started_s, machine = found.groups()
    started = datetime.fromtimestamp(int(started_s)).astimezone().isoformat(" ", timespec="seconds")
    return f": process {process} on {machine}, since {started}"


def _address(storage: str) -> URL:
    """A storage's URL, with its password where this process was ever given it.

    Raises ConfigError for one that cannot be read, or whose password would be shown where passwords are hidden.
    """
    shown = shown_storage(storage)
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"{shown}: cannot be used as storage: expected a URL as SQLAlchemy reads it, "
            "for example postgresql+psycopg://user@host/database"
        ) from None
    if re.match(r"[^:]*://[^:/]*:[^@]*@[^?]*@", storage):
        raise ConfigError(f"{shown}: cannot be used as storage: an @ in a password is written %40")
    if any("password" in name for name in url.query):
        raise ConfigError(f"{shown}: cannot be used as storage: a password goes before the @ (user:password@host)")
    if url.password is None:
        return url
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
    if url.password != HIDDEN:
        _passwords[bare] = str(url.password)
        return url
    return url.set(password=_passwords[bare]) if bare in _passwords else bare


def _connect_args(url: URL) -> dict[str, Any]:
    """What `create_engine` is told of a connection."""
    arguments: Mapping[str, object] = {}
    if url.get_backend_name() == "sqlite":
        arguments = {"timeout": LOCKED_S}
    elif url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        arguments = {name: value for name, value in _LIBPQ.items() if name not in url.query}
    return {"connect_args": arguments}


def first_line(error: Exception) -> str:
    """What a storage raised, in one line."""
    # Optuna wraps the database's message in a longer story.
    cause = error.__cause__ or error
    line = next(iter(str(cause).splitlines()), "")
    if isinstance(cause, _DAMAGE):
        line = f"{type(cause).__name__}: {line}"
    if isinstance(cause, ModuleNotFoundError):
        of_postgresql = str(cause.name).startswith("psycopg")
        line = f"{cause.name} is not installed" + (f"; install it with: {_INSTALL}" if of_postgresql else "")
    if "no password supplied" in line:
        line += "; give it in the URL, in PGPASSWORD or in ~/.pgpass"
    # SQLite has a kind of its own for whatever else goes wrong.
    if isinstance(cause, _DAMAGE) or type(cause) in (sqlite3.DatabaseError, DatabaseError):
        line += "; if it is damaged, move it away, or name another --workspace"
    return line


def connect(storage: str) -> optuna.storages.RDBStorage:
    """Open a storage, the database of a file only where its structure is whole.

    A password that is hidden (`***`) is the one that this process was given before, or left for the driver to find.
    Raises one of STORAGE_ERRORS, and ConfigError for a URL that cannot be read.
    """
    url = _address(storage)
    # Not pinged before use: a server that was started again has forgotten the lock, so the run has to end.
    backend = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=_connect_args(url))
    if url.get_backend_name() != "sqlite":
        return backend
    with backend.engine.connect() as connection:
        found = str(connection.exec_driver_sql("PRAGMA integrity_check").scalar())
    if found != "ok":
        raise ValueError(found)
    return backend


def hush_optuna() -> None:
    """Optuna prints to stderr by itself; what it says goes through logging like everything else."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()


def study_name(number: int) -> str:
    """The name of a run's study on a storage."""
    return f"tuner-{number}"


def study_numbers(backend: optuna.storages.RDBStorage) -> list[int]:
    """Of the studies on a storage, rising."""
    names = optuna.study.get_all_study_names(backend)
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"tuner-(\d+)", name)))


class _WithArtifacts(optuna.storages.RDBStorage):
    """A storage of which one study has artifacts that are not written anywhere: it only says that they are there."""

    def __init__(self, backend: optuna.storages.RDBStorage, study_id: int, artifacts: Mapping[str, str]) -> None:
        super().__init__(backend.url, backend.engine_kwargs)
        self._study_id = study_id
        # As optuna.artifacts.upload_artifact writes them.
        self._artifacts = {
            f"artifacts:{key}": json.dumps(asdict(ArtifactMeta(key, name, guess_type(name)[0] or "text/plain", None)))
            for key, name in artifacts.items()
        }

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        attributes = super().get_study_system_attrs(study_id)
        return {**self._artifacts, **attributes} if study_id == self._study_id else attributes

    def get_all_studies(self) -> list[Any]:
        studies = super().get_all_studies()
        for study in studies:
            if study._study_id == self._study_id:
                study.system_attrs = {**self._artifacts, **study.system_attrs}
        return studies


def open_storage(storage: str, artifacts: Mapping[str, str]) -> optuna.storages.BaseStorage:
    """A storage that holds a run, for Optuna's dashboard. Raises TunerError when it cannot be read or holds none.

    artifacts: id -> file name, of what is to be shown with the latest run; nothing is written.
    """
    hush_optuna()
    shown = shown_storage(storage)
    with storage_errors(f"{shown}: cannot be read"):
        backend = connect(storage)
        numbers = study_numbers(backend)
        if numbers:
            return _WithArtifacts(backend, backend.get_study_id_from_name(study_name(numbers[-1])), artifacts)
    raise ConfigError(f"{shown}: holds no run of tune")
