"""``python -m pipeline`` is ``wit``."""

from pipeline.cli import main

raise SystemExit(main())
