"""Collects the messages of the package's logger."""

import contextlib
import logging


@contextlib.contextmanager
def collected():
    found = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("rdrop_jax")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
