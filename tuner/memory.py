"""Memory that nothing needs any more, given back to the system."""

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Free what only refers to itself, and have the C library return what is free; only glibc can be asked to.

    TensorFlow copies a graph with all its weights several times to optimise it, in the first run of a session. What is
    freed then stays with the process: a model of 134 MB holds 2.6 GB after its first run, and 1.7 GB after this call.
    """
    gc.collect()  # TensorFlow's graphs refer to themselves
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
