"""The database that Optuna keeps a run in: opened where it is whole, and what goes wrong with it told in one line."""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from mimetypes import guess_type
from typing import Any

import optuna
from alembic.util import CommandError
from optuna.artifacts import ArtifactMeta
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from tuner.errors import ConfigError, TunerError

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


def study_name(number: int) -> str:
    """The name of a run's study on a storage."""
    return f"tuner-{number}"


def study_numbers(backend: optuna.storages.RDBStorage) -> list[int]:
    """Of the studies on a storage, rising."""
    names = optuna.study.get_all_study_names(backend)
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"tuner-(\d+)", name)))


class _WithArtifacts(optuna.storages.RDBStorage):
    """A storage of which one study has artifacts that are not written anywhere: it only says that they are there."""

    def __init__(self, storage: str, study_id: int, artifacts: Mapping[str, str]) -> None:
        super().__init__(storage)
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
    try:
        backend = connect(storage)
        numbers = study_numbers(backend)
        if numbers:
            return _WithArtifacts(storage, backend.get_study_id_from_name(study_name(numbers[-1])), artifacts)
    except STORAGE_ERRORS as error:
        raise TunerError(f"{storage}: cannot be read: {first_line(error)}") from error
    raise ConfigError(f"{storage}: holds no run of tune")
