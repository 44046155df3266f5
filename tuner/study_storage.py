"""The database that Optuna keeps a run in: opened where it is whole, and what goes wrong with it told in one line."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from alembic.util import CommandError
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from tuner.errors import TunerError

# What Optuna and SQLAlchemy raise of a damaged database; a RuntimeError of one that another Optuna made.
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, CommandError)
STORAGE_ERRORS = (
    *(ArgumentError, SQLAlchemyError, StorageInternalError, DuplicatedStudyError, ImportError),
    *(*_DAMAGE, RuntimeError),
)
# How long a database that another process has locked is waited for: a trial may have taken hours.
LOCKED_S = 60.0


@contextmanager
def storage_errors() -> Iterator[None]:
    """A storage that fails in mid-run, for instance on a full disk, is told in one line."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise TunerError(f"the run's record cannot be used: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What a storage raised, in one line."""
    # Optuna wraps the database's message in a longer story.
    cause = error.__cause__ or error
    line = next(iter(str(cause).splitlines()), "")
    if isinstance(cause, _DAMAGE):
        line = f"{type(cause).__name__}: {line}"
    # SQLite has a kind of its own for whatever else goes wrong.
    if isinstance(cause, _DAMAGE) or type(cause) in (sqlite3.DatabaseError, DatabaseError):
        line += "; if it is damaged, move it away, or name another --workspace"
    return line


def connect(storage: str) -> optuna.storages.RDBStorage:
    """Open a storage, the database of a file only where its structure is whole. Raises one of STORAGE_ERRORS."""
    if not storage.startswith("sqlite:"):
        return optuna.storages.RDBStorage(storage)
    backend = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": LOCKED_S}})
    with backend.engine.connect() as connection:
        found = str(connection.exec_driver_sql("PRAGMA integrity_check").scalar())
    if found != "ok":
        raise ValueError(found)
    return backend


def hush_optuna() -> None:
    """Optuna prints to stderr by itself; what it says goes through logging like everything else."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
