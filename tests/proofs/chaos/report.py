"""What a run found: counts, and violations with their coordinates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

SHOWN: Final = 20
"""Violations of a kind that are written out; the rest is counted."""


class Report:
    """Counts by name, violations by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self._texts: defaultdict[str, list[str]] = defaultdict(list)

    def violation(self, kind: str, text: str) -> None:
        """Something that must not be."""
        self.violations[kind] += 1
        if len(self._texts[kind]) < SHOWN:
            self._texts[kind].append(text)

    def texts(self, kind: str) -> list[str]:
        """The first violations of that kind."""
        return self._texts[kind]

    @property
    def clean(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations

    def lines(self) -> Iterator[str]:
        """For people: the counts by group, then every violation."""
        groups: dict[str, list[str]] = {}
        for name, count in sorted(self.counts.items()):
            group, _, rest = name.partition(": ")
            groups.setdefault(group, []).append(f"{rest} {count:,}" if rest else f"{count:,}")
        for group, parts in groups.items():
            yield f"{group}: {' · '.join(parts)}"
        for kind, count in self.violations.most_common():
            yield f"VIOLATION {kind}: {count:,}"
            for text in self._texts[kind]:
                yield f"  {text}"
            if count > len(self._texts[kind]):
                yield f"  … and {count - len(self._texts[kind]):,} more"
        yield "clean" if self.clean else f"{self.violations.total():,} violations"
