"""What a watch of the API tells, for tests to wait for."""

from __future__ import annotations

import asyncio


class Told:
    """The lines that are told, one by one; None where nothing hinders."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self.tell = self._lines.put_nowait

    async def next(self) -> str | None:
        """The next one."""
        async with asyncio.timeout(30):
            return await self._lines.get()

    async def until(self, part: str | None) -> None:
        """Wait for a line with this part, or for none."""
        while True:
            line = await self.next()
            if line is None if part is None else part in (line or ""):
                return
