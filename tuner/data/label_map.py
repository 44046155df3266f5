"""A label map: which id a category's name stands for."""

from pathlib import Path

import yaml

from tuner.errors import DatasetError


def read_label_map(path: Path) -> dict[str, int]:
    """Read a YAML mapping of category names to ids, such as `person: 1`.

    Raises DatasetError naming the file and the entry when it is anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: not a readable label map: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: expected a mapping of category names to ids, got {type(content).__name__}")
    for name, number in content.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise DatasetError(
                f"{path}: {name}: got {str(number)[:40]!r}; expected an id, a whole number of at least 1"
            )
    return {str(name): number for name, number in content.items()}
