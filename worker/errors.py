"""Every exception of the project, by whose fault it is, and the exit code of each.

A rejection is data, never an exception. The text of an exception is one line for people that says
what to do next. It never quotes a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class BuddyError(Exception):
    """An error that a person can fix. The command line prints its text and exits."""

    exit_code = 1


class UsageError(BuddyError):
    """The command, its options or its input files are wrong."""

    exit_code = 2


class ConfigurationError(BuddyError):
    """A setting or a topic does not meet the program's requirements."""

    exit_code = 3


class BrokerUnavailable(BuddyError):
    """The broker cannot be reached, or did not answer in time."""

    exit_code = 4


class MissingTopic(BuddyError):
    """A topic does not exist; `buddy topics create` creates it."""

    exit_code = 3


class TopicRecreated(BuddyError):
    """A topic was deleted, or deleted and created anew, while it was in use."""

    exit_code = 3


class MessageRefused(BuddyError):
    """The broker will never accept this message (too large, not allowed)."""

    exit_code = 1

    def __init__(self, text: str, refused: Mapping[int, str] | None = None) -> None:
        """`refused` maps the index of a refused message in the call to the reason.

        It holds the known ones; there may be more.
        """
        super().__init__(text)
        self.refused = refused or {}

    @classmethod
    def of(cls, refused: Mapping[int, str]) -> MessageRefused:
        """The error for at least one refused message. Its text is the reason of the first."""
        return cls(next(iter(refused.values())), refused)


class Fenced(BuddyError):
    """Another worker owns this task now; nothing of the attempted commit is visible."""

    exit_code = 1


class NoAnswer(BuddyError):
    """An answer, a verdict or an expected message did not arrive within the time limit."""

    exit_code = 5


class StateError(BuddyError):
    """A directory of state cannot be read or written (rights, full disk)."""

    exit_code = 6


class StateLost(StateError):
    """A directory of state is damaged, or was emptied in use: it is rebuilt from the topics.

    An operation in progress that relies on it starts over.
    """


class DamagedLog(StateError):
    """The embedded log does not hold what was written: `buddy log verify` shows where."""


class ReplayTakenOver(StateError):
    """Another replay has begun, and has stopped this one."""


class ClockRefused(StateError):
    """The clock of this machine contradicts the embedded log's own time."""


class OutputError(BuddyError):
    """Standard output cannot be written: it is closed, or on a full disk."""

    exit_code = 6


class ReaderGoneError(OutputError):
    """The reader of standard output has closed it, as `head` does: nothing to report."""

    exit_code = 141  # the exit code that shells report for SIGPIPE


class Incomplete(BuddyError):
    """An export was finished, but not everything asked for had been judged in time."""

    exit_code = 7


class NobodyWorks(BuddyError):
    """The service is not running, or records wait that no worker reads."""

    exit_code = 8


WAITED_OUT: Final = (BrokerUnavailable, ConfigurationError, DamagedLog, MissingTopic)
"""The errors that a running service waits out with backoff, and reports: an outage, refused rights
or logins, a damaged entry of the log, a missing topic. At start-up, ConfigurationError and
MissingTopic end the service."""
