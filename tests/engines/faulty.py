"""Beam workers that kill the executor that started them, once, after a chosen bundle.

The bundle's work is done by then, its files are written and its requests sent; only its result never arrives.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core import worker

ROOT = Path(__file__).parents[2]


class Fault:
    """What shall die when, in files that the test and all workers share.

    Args:
        folder: Theirs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def program(self) -> Path:
        """A program that starts such a worker, for Beam's environment PROCESS."""
        path = self.folder / "worker"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [
                f"#!{sys.executable}",
                f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})",
                f"from tests.engines import faulty; faulty.main(pathlib.Path({str(self.folder)!r}))",
            ]
            path.write_text("\n".join(lines) + "\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    @property
    def options(self) -> list[str]:
        """Beam's options for these workers."""
        environment = json.dumps({"command": str(self.program)})
        return ["--environment_type=PROCESS", f"--environment_config={environment}"]

    def arm(self, bundle: int) -> None:
        """Lets an executor die with the n-th bundle from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("bundle-*"):
            path.unlink()
        (self.folder / "plan.json").write_text(json.dumps({"bundle": bundle}))

    @property
    def struck(self) -> bool:
        """Whether it happened."""
        return not (self.folder / "plan.json").exists()

    def count(self) -> None:
        """Counts a bundle, and strikes when it is the chosen one."""
        plan = self._plan()
        number = 1
        while not self._first(f"bundle-{number}"):
            number += 1
        if plan.get("bundle") == number:
            (self.folder / "plan.json").unlink()
            os.kill(os.getppid(), signal.SIGKILL)

    def _plan(self) -> Mapping[str, int]:
        try:
            plan: Mapping[str, int] = json.loads((self.folder / "plan.json").read_text())
        except FileNotFoundError:
            plan = {}
        return plan

    def _first(self, name: str) -> bool:
        try:
            os.close(os.open(self.folder / name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def main(folder: Path) -> None:
    """A worker that counts its bundles."""
    from apache_beam.runners.worker import bundle_processor

    fault = Fault(folder)
    process_bundle = bundle_processor.BundleProcessor.process_bundle

    def counted(*args: Any) -> Any:
        result = process_bundle(*args)
        fault.count()
        return result

    setattr(bundle_processor.BundleProcessor, "process_bundle", counted)  # noqa: B010
    worker.start(sys.argv[1:], os.environ)
