"""``python -m pipeline`` is ``wit``."""

import os
import sys
from pathlib import Path

# Python looks into the current folder first. A result in it that is called model or queries would hide the package
# of that name, unless the current folder is where the packages themselves lie.
if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from pipeline.cli import main

if __name__ == "__main__":
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # for the processes that it starts
    raise SystemExit(main())
