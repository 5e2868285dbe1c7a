"""The unit tests on every Python that the project supports: `.venv/bin/nox`.

A Python that this machine lacks is skipped; `--error-on-missing-interpreters` makes that an error.
"""

import nox


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def unit(session: nox.Session) -> None:
    """Install as the Makefile does, pinned and without build isolation, then run the tests."""
    session.install("--require-hashes", "--requirement", "requirements-dev.txt")
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")
    session.run("pytest", "--numprocesses=auto", "--dist=loadfile", "tests/unit", *session.posargs)
