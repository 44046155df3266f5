"""How the address of a study is shown."""

import re

HIDDEN = "***"


def shown_storage(storage: str) -> str:
    """A storage's URL as it may be printed: without its password, be the URL well formed or not."""
    hidden = re.sub(r"^([^:]*://[^:/]*):.*@", rf"\1:{HIDDEN}@", storage, flags=re.DOTALL)
    return re.sub(r"([?&]\w*password=)[^&]*", rf"\1{HIDDEN}", hidden)
