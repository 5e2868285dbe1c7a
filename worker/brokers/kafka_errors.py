"""aiokafka's errors, sorted by what they mean to this project."""

from __future__ import annotations

import asyncio
import re

from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    IllegalSaslStateError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)

from worker.errors import BrokerUnavailable, BuddyError, ConfigurationError

FAILURES = (
    KafkaError,
    IllegalOperation,
    OSError,  # includes TimeoutError
    asyncio.IncompleteReadError,
    # A client whose metadata or state is gone trips over its own assumptions.
    AssertionError,
    AttributeError,
)
REFUSED_LOGIN = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
_FORBIDDEN = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


def explain(error: BaseException) -> str:
    """What went wrong in one line, without the class names of a library."""
    if isinstance(error, KafkaError):
        text = " ".join(str(argument) for argument in error.args) or _words(type(error).__name__)
        if text.startswith("Unable to bootstrap"):  # then a list of Python objects
            text = "no connection"
    elif isinstance(error, TimeoutError) and not str(error):
        text = "no answer in time"
    elif isinstance(error, OSError) and error.strerror:
        # asyncio joins the failures of several addresses into one long text.
        text = error.strerror.split(" [", maxsplit=1)[0]
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _words(name: str) -> str:
    """`TopicAuthorizationFailedError` as words: many errors carry nothing but their name."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Error")).lower()


def translate(what: str, error: BaseException) -> BuddyError:
    """The exception of this project for a failure of aiokafka while doing `what`."""
    for cause in causes(error):
        if isinstance(cause, BuddyError):
            return cause
        if isinstance(cause, REFUSED_LOGIN):
            return ConfigurationError(f"Kafka refuses the login: {explain(cause)}")
        if isinstance(cause, _FORBIDDEN):
            # Not a ConfigurationError: whoever runs keeps trying, and goes on once it is granted.
            return BrokerUnavailable(
                f"Kafka does not allow to {what}: {_words(type(cause).__name__)}"
                f" ({explain(cause)}); grant it to this user"
            )
    return BrokerUnavailable(f"Kafka did not {what}: {explain(error)}")


def is_permanent(error: BaseException) -> bool:
    """Whether asking again at once cannot help."""
    return any(
        isinstance(cause, (BuddyError, *REFUSED_LOGIN, *_FORBIDDEN)) for cause in causes(error)
    )


def is_fence(error: BaseException) -> bool:
    """Whether the failure means that another producer of the same name has started."""
    return any(isinstance(cause, ProducerFenced) for cause in causes(error))


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    return chain
