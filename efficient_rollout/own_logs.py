"""This package's warnings, on the console of a process whose root logger somebody else has turned down."""

import logging

_FORMAT = "%(levelname)s:%(asctime)s:%(name)s: %(message)s"
_PACKAGE = __name__.partition(".")[0]


def keep_own_warnings() -> None:
    """Give this package's loggers a level and a handler of their own in this process, once; nothing where they have.

    vLLM's server loads a package that sets the root logger to ERROR, and raises the level of its handlers. What the
    handlers of the root logger would say a second time is not passed on to them.
    """
    logger = logging.getLogger(_PACKAGE)
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
