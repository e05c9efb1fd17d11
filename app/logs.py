"""Send plain sentences to stderr, and none of them about a patient."""

import logging
import sys
import time

# These write element values, and so patients' names, into their messages.
OUTSPOKEN = ("pydicom", "pynetdicom", "py.warnings", "sqlalchemy.engine")
TALKATIVE = ("asyncio", "httpx", "httpcore", "matplotlib", "multipart", "PIL", "alembic")


def setup(*, verbose: bool = False) -> None:
    """Log from info (or debug, where `verbose`) upwards to stderr, with UTC times."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in OUTSPOKEN:
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
