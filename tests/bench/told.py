"""Run a command and keep what it prints, for the meter's steps: told.py FILE COMMAND..."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

with Path(sys.argv[1]).open("wb") as _file:
    sys.exit(subprocess.run(sys.argv[2:], stdout=_file, check=False).returncode)
