"""Every exception of the project, by whose fault it is, and the exit code each leads to.

A rejection is data, never an exception. The text of an exception is one line for a person and
says what to do next; it never quotes a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class BuddyError(Exception):
    """Something that a person can mend; the command line prints its text and exits."""

    exit_code = 1


class UsageError(BuddyError):
    """The command, its options or its input files are wrong."""

    exit_code = 2


class ConfigurationError(BuddyError):
    """A setting or a topic is not as the rest relies on."""

    exit_code = 3


class BrokerUnavailable(BuddyError):
    """The broker cannot be reached, or did not answer in time."""

    exit_code = 4


class MissingTopic(BuddyError):
    """A topic does not exist; `buddy topics create` makes it."""

    exit_code = 3


class TopicRecreated(BuddyError):
    """A topic was deleted, or deleted and created anew, while it was in use."""

    exit_code = 3


class MessageRefused(BuddyError):
    """The broker will never take this message (too large, not allowed)."""

    exit_code = 1

    def __init__(self, text: str, refused: Mapping[int, str] | None = None) -> None:
        """`refused` are the messages by their place in the call, each with what is wrong with it.

        As far as they are known; there may be more.
        """
        super().__init__(text)
        self.refused = refused or {}

    @classmethod
    def of(cls, refused: Mapping[int, str]) -> MessageRefused:
        """These were refused, at least one; the error speaks of the first."""
        return cls(next(iter(refused.values())), refused)


class Fenced(BuddyError):
    """Another worker owns this task now; nothing of the attempted commit is visible."""

    exit_code = 1


class NoAnswer(BuddyError):
    """Nobody answered a request in time, or a verdict did not come within the limit."""

    exit_code = 5


class StateError(BuddyError):
    """A directory of state cannot be read or written (rights, full disk)."""

    exit_code = 6


class StateLost(StateError):
    """A directory of state is damaged, or was emptied meanwhile: it is rebuilt from the topics.

    Whoever has something in hand that relies on it begins anew.
    """


class DamagedLog(StateError):
    """The embedded log is not what was written: `buddy log verify` shows where."""


class ClockRefused(StateError):
    """The clock of this machine contradicts the embedded log's own time."""


class OutputError(BuddyError):
    """Standard output cannot be written: it is closed, or on a full disk."""

    exit_code = 6


class ReaderGoneError(OutputError):
    """Whoever read standard output has gone, as `head` does: there is nothing to be said."""

    exit_code = 141  # as a shell reports a process that SIGPIPE has ended


class Incomplete(BuddyError):
    """An export was finished, but not everything asked for had been judged in time."""

    exit_code = 7


class NobodyWorks(BuddyError):
    """The service is not running, or records wait that nobody reads."""

    exit_code = 8


WAITED_OUT: Final = (BrokerUnavailable, ConfigurationError, MissingTopic)
"""What a running service waits out, with a growing pause, and tells: an outage, a right or a login
that is refused, a topic that is gone. At its start the last two end it."""
