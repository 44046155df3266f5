"""A published archive as a folder, from wherever it stands: fetched, unpacked, or there already."""

import re
from pathlib import Path

from tuner.download.archives import Archive
from tuner.download.fetch import DEFAULT_PATIENCE, Patience, fetch
from tuner.download.unpack import is_complete, is_unpacked, unpack
from tuner.errors import TunerError
from tuner.exclusive import lock
from tuner.files import remove_leftovers
from tuner.progress import Progress


def obtain(
    archive: Archive,
    parent: Path,
    progress: Progress,
    *,
    fresh: bool = False,
    patience: Patience = DEFAULT_PATIENCE,
) -> bool:
    """Have `archive` as the folder `parent / archive.folder`; returns False where it was there, complete.

    The archive is removed once it is unpacked; a call after an interruption goes on with what is there of it.
    fresh: replace a folder that was unpacked before. Raises TunerError as `fetch` and `unpack` do, for a folder of that
    name that no call unpacked, and, unless `fresh`, for one that is not known to be complete.
    """
    folder = parent / archive.folder
    # In this order: another process may put it there meanwhile.
    is_there = folder.exists()
    if not fresh and is_complete(folder, archive.sha256):
        return False
    if is_there:
        if not is_unpacked(folder):
            raise TunerError(f"{folder}: was not unpacked by this command: move it away, or choose another folder")
        if not fresh:
            raise TunerError(
                f"{folder}: is there, but was not unpacked from {archive.file_name} or has changed; "
                "give --fresh to replace it"
            )
    path = parent / archive.file_name
    try:
        fetch(archive, path, progress, patience)
        with progress.stage("unpack") as stage, path.open("rb") as file:
            lock(file, path, "unpacking")
            remove_leftovers(folder.parent, re.escape(folder.name))
            unpack(path, folder, archive.sha256)
            path.unlink()
            stage.note(str(folder))
    except (TunerError, FileNotFoundError) as error:
        # The archive is gone, or locked, where another process was quicker.
        if not fresh and is_complete(folder, archive.sha256):
            return False
        raise TunerError(str(error)) from error
    return True
