"""Asks the sink for exports."""

from __future__ import annotations

import structlog

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import BuddyError
from worker.http.access import Caller
from worker.http.broker_watch import BrokerWatch
from worker.sink.requests import ExportRequest, encode_request
from worker.stream import ProducerRecord

_log = structlog.get_logger(__name__)


class ExportRequests:
    """Sends requests to the sink, and tells `watch` whether they can be sent."""

    def __init__(self, broker: Broker, names: Names, watch: BrokerWatch) -> None:
        self._broker = broker
        self._topic = names.export_requests
        self._watch = watch

    async def send(self, wanted: ExportRequest, caller: Caller) -> None:
        """Ask for an export. Raises BuddyError if the broker does not take the request."""
        key, value = encode_request(wanted)
        try:
            await self._broker.publish([ProducerRecord(self._topic, key, value, partition=0)])
        except BuddyError as error:
            self._watch.failed(self._topic, error)
            raise
        self._watch.sent(self._topic)
        _log.info("export_requested", caller=caller.name, request=wanted.id)
