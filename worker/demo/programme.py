"""A made-up programme of all eight entities, in causal order.

Rules:
- The programme consists of cohorts. A cohort is about forty people who join at about the same
  time, and their records of the following months. No record refers to another cohort, so a
  programme of any length needs the memory of one cohort.
- A record never comes before the records that it refers to. `worker.demo.record_stream` then
  moves each record by less than `WINDOW` places. Records of one key keep their order.
- Attendees of an event are people of its match. The event waits for the match, and the match for
  its people. So the attendees are known when the event is judged, however late they come.
- Only feedback and milestones are deleted, since nothing refers to them. A user's email address
  never changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from math import ceil
from random import Random
from typing import Final, TypeVar

from worker.demo.record import Record, Row, encode, key_of, uuid4
from worker.demo.words import (
    ANSWERS,
    CITIES,
    DOMAINS,
    END_REASONS,
    FORMAL,
    FORMATS,
    INTERESTS,
    LEVELS,
    MILESTONES,
    MOODS,
    OUTINGS,
    PLACES,
    PROGRESS,
    SENTENCES,
    SKILLS,
    TONGUES,
)

_T = TypeVar("_T")
_COHORT: Final = 40
_DAY: Final = 86_400
_SPAN: Final = 730 * _DAY
# Records per user, in the proportions of the specification's `record_counts`.
PER_USER: Final = {
    "matches": 0.75, "events": 2.5, "event_attendance": 1.5, "skill_sessions": 0.5,
    "checkins": 2.0, "feedback": 1.0, "milestones": 0.25,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Person:
    id: str
    role: str
    joined: int


@dataclass(frozen=True, slots=True)
class _Pair:
    id: str
    participant: _Person
    buddy: _Person
    start: int
    end: int


class _Cohort:
    """One cohort in the making: `records` collects (Unix seconds, record)."""

    def __init__(self, rng: Random, start: int, now: int) -> None:
        self._rng = rng
        self._random = rng.random
        self._start = start
        self._now = now
        self.records: list[tuple[int, Record]] = []

    def write(self, first: int, size: int) -> None:
        """Write `size` users, numbered from `first`, and all records that belong to them."""
        counts = {entity: ceil(each * size) for entity, each in PER_USER.items()}
        people = [self._user(first + i, ("participant", "buddy")[i % 2]) for i in range(size)]
        pairs = [
            self._match(self._pick(people[0::2]), self._pick(people[1::2]))
            for _ in range(counts["matches"])
        ]
        for _ in range(counts["events"]):
            self._event(self._pick(pairs))
        self._gatherings(people, pairs, counts["event_attendance"])
        for _ in range(counts["skill_sessions"]):
            self._skill_session(people, self._pick(pairs))
        for _ in range(counts["checkins"]):
            self._checkin(self._pick(pairs))
        for _ in range(counts["feedback"]):
            self._feedback(self._pick(pairs))
        for person in self._rng.sample(people, counts["milestones"]):
            self._milestone(person)

    # Small helpers. `random()` is several times as fast as `choice` and `randrange`.

    def _pick(self, values: Sequence[_T]) -> _T:
        return values[int(self._random() * len(values))]

    def _chance(self, share: float) -> bool:
        return self._random() < share

    def _number(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def _rating(self) -> float:
        """Return a rating with two decimals, more often high than low."""
        return self._number(20, 100) / 100 if self._chance(0.3) else self._number(70, 100) / 100

    def _within(self, start: int, end: int) -> int:
        return start + int(self._random() * (end - start))

    def _text(self) -> str:
        longest = 30 if self._chance(0.02) else 4
        return " ".join([self._pick(SENTENCES) for _ in range(self._number(1, longest))])

    def _stamp(self, at: int) -> str:
        """Format a time in one of the ways that upstream systems use."""
        dice = self._random()
        if dice < 0.94:
            return f"{datetime.fromtimestamp(at, UTC).isoformat()[:19]}Z"
        if dice < 0.97:
            return f"{datetime.fromtimestamp(at + 3600, UTC).isoformat()[:19]}+01:00"
        return f"{datetime.fromtimestamp(at, UTC).isoformat()[:19]}.{int(dice * 10**9) % 1000:03}Z"

    def _add(self, at: int, entity: str, row: Row) -> None:
        self.records.append((at, Record(entity, key_of(entity, row), encode(row))))

    def _later(self, at: int) -> int:
        return self._within(at, min(self._now, at + 60 * _DAY))

    def _delete_later(self, at: int, entity: str, row: Row) -> None:
        self.records.append((self._later(at), Record(entity, key_of(entity, row), None)))

    # The eight entities.

    def _user(self, number: int, role: str) -> _Person:
        person = _Person(uuid4(self._rng), role, self._within(self._start, self._start + 20 * _DAY))
        tongue = self._pick(TONGUES)
        (first, first_slug), (last, last_slug) = self._pick(tongue.first), self._pick(tongue.last)
        row: Row = {
            "id": person.id,
            "email": f"{first_slug}.{last_slug}{number}@{self._pick(DOMAINS)}",
            "first_name": first,
            "last_name": last,
            "role": role,
            "joined_at": self._stamp(person.joined),
        }
        if self._chance(0.8):
            row["language_preference"] = self._pick(tongue.preferences)
        if self._chance(0.85):
            row["interests"] = self._rng.sample(INTERESTS, self._number(0, 4))
        if self._chance(0.9):
            row["location"] = self._pick(CITIES)
        self._add(person.joined, "users", row)
        if self._chance(0.03):
            self._add(self._later(person.joined), "users", row | {"location": self._pick(CITIES)})
        return person

    def _match(self, participant: _Person, buddy: _Person) -> _Pair:
        # The last cohort starts 60 days ago: within 40 days everyone has joined and is matched.
        start = max(participant.joined, buddy.joined) + self._number(_DAY, 20 * _DAY)
        end = start + self._number(30 * _DAY, 300 * _DAY)
        ended = end < self._now and self._chance(0.75)
        pair = _Pair(uuid4(self._rng), participant, buddy, start, min(end, self._now))
        row: Row = {
            "match_id": pair.id,
            "participant_id": participant.id,
            "buddy_id": buddy.id,
            "matched_at": self._stamp(start),
            "status": "inactive" if self._chance(0.12) else "active",
        }
        # A match that ended is sent as one record, or as an active match and its update.
        announced = not ended or self._chance(0.3)
        if announced:
            self._add(start, "matches", row)
        if ended:
            row |= {
                "status": "ended",
                "ended_at": self._stamp(end),
                "end_reason": self._pick(END_REASONS),
                "duration_days": (end - start) // _DAY,
                "sessions_completed": self._number(0, 40),
                "events_attended": self._number(0, 20),
            }
            self._add(end if announced else start, "matches", row)
        return pair

    def _event(self, pair: _Pair) -> None:
        at = self._within(pair.start, pair.end)
        kind, description = self._pick(OUTINGS)
        row: Row = {
            "event_id": uuid4(self._rng),
            "match_id": pair.id,
            "event_type": kind,
            "event_date": self._stamp(at),
        }
        if self._chance(0.8):
            row["description"] = description
        if self._chance(0.7):
            row["location"] = self._pick(PLACES)
        if self._chance(0.75):
            both = [pair.participant.id, pair.buddy.id]
            row["attendees"] = both if self._chance(0.9) else both[:1]
        self._add(at, "events", row)

    def _gatherings(self, people: list[_Person], pairs: list[_Pair], count: int) -> None:
        """Write `count` attendances at a few formal events; nobody attends one event twice."""
        number = ceil(count / min(10, len(people)))
        for i in range(number):
            guests = self._rng.sample(people, len(range(i, count, number)))
            self._gathering(guests, pairs)

    def _gathering(self, guests: list[_Person], pairs: list[_Pair]) -> None:
        title, kind, categories, goals = self._pick(FORMAL)
        at = self._within(self._start + 20 * _DAY, self._now)
        event: Row = {
            "event_title": title,
            "event_type": kind,
            "event_format": self._pick(FORMATS),
        }
        details: Row = {}
        if self._chance(0.8):
            details |= {
                "location": self._pick(PLACES),
                "duration_minutes": self._number(2, 12) * 15,
            }
        if self._chance(0.9):
            details["attendee_count"] = len(guests) + self._number(0, 20)
        if self._chance(0.6):
            details |= {"organizer": self._pick(("Jane Organizer", "Røde Kors", "Åse Lie & co."))}
        if self._chance(0.8):
            details |= {"categories": categories, "sdg_goals": goals}
        event_id = uuid4(self._rng)
        for guest in guests:
            row: Row = {"event_id": event_id, "user_id": guest.id}
            seconds = min(at + self._number(0, 900), self._now)
            if (pair := self._pick(pairs)).start <= seconds and self._chance(0.4):
                row["match_id"] = pair.id
            row |= event
            row["attended_at"] = self._stamp(seconds)
            self._add(seconds, "event_attendance", row | details)

    def _skill_session(self, people: list[_Person], pair: _Pair) -> None:
        at = self._within(pair.start, pair.end)
        skill_id, name, category = self._pick(SKILLS)
        teacher, learner, matched = pair.buddy, pair.participant, self._chance(0.6)
        if not matched:
            at = self._within(self._start + 20 * _DAY, self._now)
            teacher, learner = self._rng.sample(people, 2)
        row: Row = {"session_id": uuid4(self._rng), "skill_id": skill_id, "skill_name": name}
        if category is not None:
            row["skill_category"] = category
        row |= {"teacher_id": teacher.id, "learner_id": learner.id}
        if matched:
            row["match_id"] = pair.id
        row["completed_at"] = self._stamp(at)
        if self._chance(0.5):
            row["scheduled_at"] = self._stamp(at - self._number(1, 20) * 1800)
        if self._chance(0.9):
            row |= {"duration_minutes": self._number(2, 8) * 15, "format": self._pick(FORMATS)}
        if self._chance(0.8):
            row["proficiency_level"] = self._pick(LEVELS)
        if self._chance(0.7):
            row |= {"teacher_rating": self._rating(), "learner_rating": self._rating()}
        if self._chance(0.4):
            row["teacher_comment"] = self._text()
        if self._chance(0.4):
            row["learner_comment"] = self._text()
        if self._chance(0.7):
            row |= {"learner_progress": self._pick(PROGRESS), "sdg_goals": (4, 8)}
            row["valuation_points"] = self._number(1, 20) * 5
        self._add(at, "skill_sessions", row)

    def _checkin(self, pair: _Pair) -> None:
        at = self._within(pair.start, pair.end)
        row: Row = {
            "checkin_id": uuid4(self._rng),
            "match_id": pair.id,
            "checkin_date": self._stamp(at),
        }
        if self._chance(0.95):
            row["mood"] = self._pick(MOODS)
        if self._chance(0.5):
            row["notes"] = self._text()
        if self._chance(0.6):
            answers: Row = {"q1": self._pick(ANSWERS), "q2": self._pick(ANSWERS)}
            if self._chance(0.3):
                answers |= {"energy": self._number(1, 10), "topics": ["jobb", {"other": None}]}
            row["question_responses"] = answers
        self._add(at, "checkins", row)

    def _feedback(self, pair: _Pair) -> None:
        at = self._later(pair.end) if self._chance(0.5) else self._within(pair.start, pair.end)
        row: Row = {
            "feedback_id": uuid4(self._rng),
            "match_id": pair.id,
            "from_role": self._pick(("participant", "buddy")),
            "rating": self._rating(),
        }
        if self._chance(0.6):
            row["feedback_text"] = self._text()
        row["submitted_at"] = self._stamp(at)
        if self._chance(0.7):
            row |= {"communication": self._rating(), "helpfulness": self._rating()}
            row["engagement"] = self._rating()
        self._add(at, "feedback", row)
        if self._chance(0.03):
            self._add(self._later(at), "feedback", row | {"rating": self._rating()})
        elif self._chance(0.04):
            self._delete_later(at, "feedback", row)

    def _milestone(self, person: _Person) -> None:
        at = self._within(person.joined, self._now)
        meant = [entry for entry in MILESTONES if entry[5] in (person.role, "all", None)]
        number, title, category, points, icon, role = self._pick(meant)
        row: Row = {
            "milestone_id": number,
            "user_id": person.id,
            "milestone_title": title,
            "milestone_category": category,
            "reached_at": self._stamp(at),
            "points": points,
        }
        if icon is not None:
            row["badge_icon"] = icon
        if role is not None:
            row["target_role"] = role
        if self._chance(0.5):
            row["progress"] = {"current": self._number(1, 5), "total": 5}
        if self._chance(0.4):
            row["metadata"] = {"is_first": self._chance(0.5), "source": "app", "weight": 0.5}
        self._add(at, "milestones", row)
        if self._chance(0.05):
            self._delete_later(at, "milestones", row)


def cohorts(users: int, seed: int, now: datetime) -> Iterator[list[Record]]:
    if users < 2:
        raise ValueError("a programme needs at least 2 users")
    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    rng = Random(seed)
    # Fractions of a second are added to times: one second less keeps them in the past.
    end = int(now.timestamp()) - 1
    first = 0
    while first < users:
        left = users - first
        size = left if left < _COHORT + 2 else _COHORT  # no cohort of one: a match needs two
        start = end - _SPAN + int((_SPAN - 60 * _DAY) * first / max(1, users - size))
        cohort = _Cohort(rng, start, end)
        cohort.write(first, size)
        # The sort is stable: records of the same second stay in the order of writing.
        cohort.records.sort(key=lambda entry: entry[0])
        yield [record for _, record in cohort.records]
        first += size


def programme(users: int, seed: int, now: datetime) -> Iterator[Record]:
    """Yield a programme of `users` users, all of whose records are accepted without a warning.

    Every record comes after the records that it refers to. All eight entities occur, in about the
    proportions of the specification, with at least 9.5 records per user. Some records are updated
    later, some are deleted. Times cover two years up to `now`. The same arguments give the same
    records. Raises ValueError for fewer than 2 users, or if `now` has no time zone.
    """
    return chain.from_iterable(cohorts(users, seed, now))
