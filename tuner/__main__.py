"""`python -m tuner`, and the command `tuner`."""

import sys

from tuner.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
