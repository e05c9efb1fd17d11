"""The log goes to stderr in plain sentences, and libraries that quote patients' names are kept out of it."""

import subprocess
import sys

PROGRAM = """
import logging, warnings
from app import logs
logs.setup(verbose=False)
logging.getLogger("app.receive").info("stored %s frames", 3)
logging.getLogger("app.receive").debug("too much to tell")
logging.getLogger("pydicom").error("invalid PatientName Canary^Ada")
logging.getLogger("pydicom.filereader").warning("invalid PatientName Canary^Ada")
warnings.warn("invalid PatientName Canary^Ada")
"""


def test_sentences_go_to_stderr_and_names_nowhere() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("Z INFO app.receive: stored 3 frames")
