"""The jars of a Java engine: Maven resolves them from a ``pom.xml``, and ``jars.lock`` holds them to checksums.

    python -m tests.engines.jars spark [--lock]

prints the class path; ``--lock`` writes the lock anew.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent


class UnreachableError(RuntimeError):
    """Maven could not get the jars."""


def missing_tools() -> list[str]:
    """What of Java and Maven this machine lacks."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def resolve(engine: str) -> list[Path]:
    """The jars that the engine's ``pom.xml`` resolves to, downloaded into Maven's own cache.

    Raises:
        UnreachableError: Maven did not get them.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".classpath") as listed:
        command = ["mvn", "-q", "-B", "-f", str(HERE / engine / "pom.xml"), "dependency:build-classpath"]
        done = subprocess.run(
            [*command, "-Dmdep.includeScope=runtime", f"-Dmdep.outputFile={listed.name}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise UnreachableError(f"{engine}: Maven did not resolve its jars: {done.stdout[-500:].strip()}")
        return [Path(name) for name in Path(listed.name).read_text().strip().split(":")]


def checksums(jars: Iterable[Path]) -> str:
    """The text of a lock: hash and file name, sorted by name."""
    lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in jars]
    return "".join(sorted(lines, key=lambda line: line[66:]))


def checked(engine: str, jars: Sequence[Path]) -> Sequence[Path]:
    """The jars, if they are what the lock says.

    Raises:
        RuntimeError: One is missing, is new, or has another content.
    """
    wanted = (HERE / engine / "jars.lock").read_text().splitlines()
    found = checksums(jars).splitlines()
    if wanted != found:
        differ = sorted({line[66:] for line in set(wanted) ^ set(found)})
        raise RuntimeError(f"{engine}: not what jars.lock says: {', '.join(differ)}")
    return jars


def main() -> None:
    """Prints an engine's class path, or renews its lock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engine", choices=sorted(p.parent.name for p in HERE.glob("*/pom.xml")))
    parser.add_argument("--lock", action="store_true", help="write jars.lock from what resolves now")
    args = parser.parse_args()
    jars = resolve(args.engine)
    if args.lock:
        (HERE / args.engine / "jars.lock").write_text(checksums(jars))
    print(":".join(map(str, checked(args.engine, jars))))  # noqa: T201


if __name__ == "__main__":
    main()
