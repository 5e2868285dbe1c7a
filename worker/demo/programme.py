"""A made-up programme of all eight entities, and the stream the demo makes of it.

Rules:
- The programme is written in cohorts: some forty people who join at about the same time, and
  what they do in the months after. Nothing refers to another cohort, so a programme of any length
  needs the memory of one.
- A record never comes before what it refers to (`programme`); then `stream` moves each one by
  less than `WINDOW` places. Records of one key keep their order.
- Attendees of an event are people of its match: the event waits for the match, the match for
  its people, so they are known by then, however late they come.
- Only feedback and milestones are deleted, as nothing refers to them. A user keeps the address.
"""

import heapq
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, cycle
from math import ceil
from random import Random
from typing import Final, TypeVar

import msgspec

from worker.demo import faults
from worker.demo.faults import Record, Row, encode, key_of, uuid4

__all__ = ["DUPLICATE_GAP", "WINDOW", "Record", "programme", "stream"]

WINDOW: Final = 1_000  # in `stream`, a record moves by fewer places than this
DUPLICATE_GAP: Final = 10_000  # records between an address and a second claim to it

_T = TypeVar("_T")
_COHORT: Final = 40
_DAY: Final = 86_400
_SPAN: Final = 730 * _DAY
# Records a user, in the proportions of the specification's `record_counts`.
_PER_USER: Final = {
    "matches": 0.75, "events": 2.5, "event_attendance": 1.5, "skill_sessions": 0.5,
    "checkins": 2.0, "feedback": 1.0, "milestones": 0.25,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tongue:
    """Names that go together, each as (as written, as in an address)."""

    preferences: tuple[str, ...]
    first: tuple[tuple[str, str], ...]
    last: tuple[tuple[str, str], ...]


def _tongue(preferences: str, first: str, last: str) -> _Tongue:
    def names(text: str) -> tuple[tuple[str, str], ...]:
        pairs = (entry.partition("/") for entry in text.split(", "))
        return tuple((shown, slug or shown.lower()) for shown, _, slug in pairs)

    return _Tongue(tuple(preferences.split(", ")), names(first), names(last))


_TONGUES: Final = (
    _tongue(
        "Norwegian, Norsk bokmål, nb-NO, nn-NO",
        "Ingrid, Øyvind/oyvind, Åse/ase, Bjørn/bjorn, Kari, Torstein, Sunniva, Håkon/hakon, Marit",
        "Hansen, Ødegård/odegard, Bråthen/brathen, Sæther/saether, Lie, Kjærstad/kjarstad",
    ),
    _tongue(
        "Arabic, العربية, ar",
        "ليلى/layla, محمد/mohammed, Fatima, Omar, سارة/sara, Yousef, Nour, خالد/khaled, Amal",
        "الحسن/alhassan, Haddad, خليل/khalil, Al-Masri/almasri, Darwish, قباني/qabbani",
    ),
    _tongue(
        "Ukrainian, Українська, uk-UA",
        "Олена/olena, Andriy, Наталія/nataliia, Iryna, Богдан/bohdan, Соломія/solomiia",
        "Шевченко/shevchenko, Kovalenko, Бондаренко/bondarenko, Лисенко/lysenko, Melnyk",
    ),
    _tongue(
        "Vietnamese, Tiếng Việt, vi",
        "Nguyệt/nguyet, Đức/duc, Thị Hương/huong, Minh, Quân/quan, Thảo/thao, Bảo Ngọc/baongoc",
        "Nguyễn/nguyen, Trần/tran, Lê/le, Phạm/pham, Đặng/dang, Võ/vo",
    ),
    _tongue(
        "Spanish, Español, es-CO, es",
        "María José/mariajose, Íñigo/inigo, Lucía/lucia, Andrés/andres, Begoña/begona, Joel",
        "García Márquez/garciamarquez, Muñoz/munoz, Peña/pena, Rodríguez/rodriguez, Ibáñez/ibanez",
    ),
    _tongue(
        "Polish, Polski, pl-PL",
        "Małgorzata/malgorzata, Łukasz/lukasz, Zofia, Paweł/pawel, Agnieszka, Grzegorz",
        "Wiśniewska/wisniewska, Wójcik/wojcik, Kowalczyk, Zieliński/zielinski, Dąbrowska/dabrowska",
    ),
    _tongue(
        "Tigrinya, ትግርኛ, ti-ER",
        "ሰላም/selam, Yonas, ሚኪኤል/mikael, Feven, Abrehet, Tesfay",
        "Tekle, Gebremariam, ሃይለ/haile, Woldu, Kidane",
    ),
    _tongue(
        "Somali, Soomaali, so, English",
        "Hodan, Abdirahman, Ayaan, Liban, Sahra, Warsame",
        "Farah, Abdi, Jama, Hassan Ali/hassanali, Mohamud",
    ),
    _tongue(
        "English, en-GB, English",
        "Alice, Siân/sian, Patrick, Chloë/chloe, Oluwaseun, Priya, George",
        "O'Brien/obrien, Smith, Fitz-Gerald/fitzgerald, Okonkwo, Patel, Wright",
    ),
)
_DOMAINS: Final = ("example.org", "example.com", "mail.example.org", "post.example.com")
_CITIES: Final = (
    "Oslo, Norway", "Bergen, Norway", "Tromsø, Norway", "Ålesund, Norway", "Bodø", "Malmö, Sverige",
    "København, Danmark", "Kraków, Polska", "Málaga, España", "Göteborg", "Kristiansand, Norway",
)  # fmt: skip
_INTERESTS: Final = (
    "hiking", "cooking", "football", "knitting", "board games", "photography", "swimming",
    "café", "gardening", "music", "chess", "langrenn", "poetry", "українська кухня", "yoga",
)  # fmt: skip
_PLACES: Final = (
    "Cafe Downtown", "Deichman Bjørvika", "Community Center", "Kulturhuset, 2nd floor",
    "Grünerløkka", "Sognsvann", "Røde Kors-huset", "Zoom", 'Kafé "Hjertet"', "City Library",
)  # fmt: skip
_OUTINGS: Final = (
    ("hangout", "Coffee meetup"), ("hangout", "Kaffe og prat"), ("walk", "Tur rundt Sognsvann"),
    ("dinner", "Cooked phở together"), ("museum", "Munch: the new exhibition"),
    ("sport", "Football"), ("study", "Language café, then homework"),
    ("trip", "Day trip to Drøbak\nBring warm clothes"),
    ("cinema", "Film night: «Verdens verste menneske»"), ("errand", "NAV, moral support"),
)  # fmt: skip
_FORMAL: Final = (
    ("Workshop: CV Writing", "educational", ("career", "skills"), (4, 8)),
    ("Språkkafé", "language", ("language",), (4, 10)),
    ("Ramadan & Easter: a shared table", "cultural", ("food", "faith", "culture"), (10, 16)),
    ("Jobbmesse 2.0", "professional", ("career",), (8,)),
    ("Summer picnic", "social", ("family", "outdoors"), (3, 11)),
    ("Ask a lawyer, free of charge", "support", ("rights", "housing"), (10, 16)),
    ("Skiing for beginners", "recreational", ("outdoors", "sport"), (3,)),
    ("Volunteers' evening", "other", (), (17,)),
)
_SKILLS: Final = (
    (1, "JavaScript Basics", "tech"), (2, "Norwegian A2: grammar", "language"),
    (7, "Excel", "tech"),
    (12, "Baking sourdough", "cooking"), (19, "Oud, first steps", "music"),
    (23, "Budgeting", "life"),
    (42, "Bicycle repair", "crafts"), (57, "Interview training", "career"),
    (58, "Public speaking", None),
    (64, "Håndarbeid", "crafts"), (71, "Вишивка", "crafts"),
    (88, "Tax returns (skattemelding)", "life"),
)  # fmt: skip
_MILESTONES: Final = (
    (1, "Welcome!", "onboarding", 10, "hand-wave", "all"),
    (2, "First Match", "buddy-connection", 100, "trophy", "all"),
    (3, "Ten Norwegian words", "language", 20, "speech-bubble", "participant"),
    (4, "First 17 May", "cultural", 50, "flag", "participant"),
    (5, "Good neighbour", "community", 0, None, "all"),
    (6, "First interview", "professional", 150, "briefcase", "participant"),
    (7, "Taught a skill", "skills", 75, "book", "buddy"),
    (8, "Five events", "events", 60, "calendar", "all"),
    (9, "Hundred hours", "impact", 500, "⭐", "buddy"),
    (10, "Programme completed", "completion", 1000, "medal", "all"),
    (11, "Photo of the month", "other", 5, None, None),
)
_SENTENCES: Final = (
    "Great session!", "Learned a lot.", "Veldig hyggelig!", "We talked about work and snow.",
    "شكرا جزيلا على المساعدة.", "Дуже дякую за підтримку!", "Cảm ơn bạn!", "¡Qué buena charla!",
    'He said "come again", so I will.', "Could be better prepared; we lost half an hour.",
    "Next time: bring the forms, the laptop and a charger.", "Bardzo pomocne.", "👍", "OK",
    "It was hard to find a time that suits us both, but when we met it was worth it every time.",
    "Vi snakket mest norsk.\nLitt engelsk også.", "=) see you soon", "- patient\n- kind\n- late",
)  # fmt: skip
_ANSWERS: Final = ("yes", "no", "sometimes", "vet ikke")
_END_REASONS: Final = (
    "completed", "completed", "completed", "participant_request", "buddy_request", "inactivity",
    "mutual_agreement", "violation", "program_ended", "other",
)  # fmt: skip
_FORMATS: Final = ("in-person", "in-person", "online", "hybrid")
_LEVELS: Final = ("beginner", "intermediate", "advanced")
_PROGRESS: Final = ("no-progress", "some-progress", "good-progress", "excellent-progress")
_MOODS: Final = ("great", "good", "good", "okay", "struggling", "difficult")


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
    """One cohort being written: `records` gathers (Unix seconds, record)."""

    def __init__(self, rng: Random, start: int, now: int) -> None:
        self._rng = rng
        self._random = rng.random
        self._start = start
        self._now = now
        self.records: list[tuple[int, Record]] = []

    def write(self, first: int, size: int) -> None:
        """Write the users `first`, `first + 1` … and everything that belongs to them."""
        counts = {entity: ceil(each * size) for entity, each in _PER_USER.items()}
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
        """Return two decimals, more often high than low."""
        return self._number(20, 100) / 100 if self._chance(0.3) else self._number(70, 100) / 100

    def _within(self, start: int, end: int) -> int:
        return start + int(self._random() * (end - start))

    def _text(self) -> str:
        longest = 30 if self._chance(0.02) else 4
        return " ".join([self._pick(_SENTENCES) for _ in range(self._number(1, longest))])

    def _stamp(self, at: int) -> str:
        """Write a time as one of the ways in which upstream systems do."""
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
        tongue = self._pick(_TONGUES)
        (first, first_slug), (last, last_slug) = self._pick(tongue.first), self._pick(tongue.last)
        row: Row = {
            "id": person.id,
            "email": f"{first_slug}.{last_slug}{number}@{self._pick(_DOMAINS)}",
            "first_name": first,
            "last_name": last,
            "role": role,
            "joined_at": self._stamp(person.joined),
        }
        if self._chance(0.8):
            row["language_preference"] = self._pick(tongue.preferences)
        if self._chance(0.85):
            row["interests"] = self._rng.sample(_INTERESTS, self._number(0, 4))
        if self._chance(0.9):
            row["location"] = self._pick(_CITIES)
        self._add(person.joined, "users", row)
        if self._chance(0.03):
            self._add(self._later(person.joined), "users", row | {"location": self._pick(_CITIES)})
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
        # One that ended is told in one record, or as an active one and its update.
        announced = not ended or self._chance(0.3)
        if announced:
            self._add(start, "matches", row)
        if ended:
            row |= {
                "status": "ended",
                "ended_at": self._stamp(end),
                "end_reason": self._pick(_END_REASONS),
                "duration_days": (end - start) // _DAY,
                "sessions_completed": self._number(0, 40),
                "events_attended": self._number(0, 20),
            }
            self._add(end if announced else start, "matches", row)
        return pair

    def _event(self, pair: _Pair) -> None:
        at = self._within(pair.start, pair.end)
        kind, description = self._pick(_OUTINGS)
        row: Row = {
            "event_id": uuid4(self._rng),
            "match_id": pair.id,
            "event_type": kind,
            "event_date": self._stamp(at),
        }
        if self._chance(0.8):
            row["description"] = description
        if self._chance(0.7):
            row["location"] = self._pick(_PLACES)
        if self._chance(0.75):
            both = [pair.participant.id, pair.buddy.id]
            row["attendees"] = both if self._chance(0.9) else both[:1]
        self._add(at, "events", row)

    def _gatherings(self, people: list[_Person], pairs: list[_Pair], count: int) -> None:
        """Write `count` attendances at a few formal events, nobody twice at the same one."""
        number = ceil(count / min(10, len(people)))
        for i in range(number):
            guests = self._rng.sample(people, len(range(i, count, number)))
            self._gathering(guests, pairs)

    def _gathering(self, guests: list[_Person], pairs: list[_Pair]) -> None:
        title, kind, categories, goals = self._pick(_FORMAL)
        at = self._within(self._start + 20 * _DAY, self._now)
        event: Row = {
            "event_title": title,
            "event_type": kind,
            "event_format": self._pick(_FORMATS),
        }
        told: Row = {}
        if self._chance(0.8):
            told |= {"location": self._pick(_PLACES), "duration_minutes": self._number(2, 12) * 15}
        if self._chance(0.9):
            told["attendee_count"] = len(guests) + self._number(0, 20)
        if self._chance(0.6):
            told |= {"organizer": self._pick(("Jane Organizer", "Røde Kors", "Åse Lie & co."))}
        if self._chance(0.8):
            told |= {"categories": categories, "sdg_goals": goals}
        event_id = uuid4(self._rng)
        for guest in guests:
            row: Row = {"event_id": event_id, "user_id": guest.id}
            seconds = min(at + self._number(0, 900), self._now)
            if (pair := self._pick(pairs)).start <= seconds and self._chance(0.4):
                row["match_id"] = pair.id
            row |= event
            row["attended_at"] = self._stamp(seconds)
            self._add(seconds, "event_attendance", row | told)

    def _skill_session(self, people: list[_Person], pair: _Pair) -> None:
        at = self._within(pair.start, pair.end)
        skill_id, name, category = self._pick(_SKILLS)
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
            row |= {"duration_minutes": self._number(2, 8) * 15, "format": self._pick(_FORMATS)}
        if self._chance(0.8):
            row["proficiency_level"] = self._pick(_LEVELS)
        if self._chance(0.7):
            row |= {"teacher_rating": self._rating(), "learner_rating": self._rating()}
        if self._chance(0.4):
            row["teacher_comment"] = self._text()
        if self._chance(0.4):
            row["learner_comment"] = self._text()
        if self._chance(0.7):
            row |= {"learner_progress": self._pick(_PROGRESS), "sdg_goals": (4, 8)}
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
            row["mood"] = self._pick(_MOODS)
        if self._chance(0.5):
            row["notes"] = self._text()
        if self._chance(0.6):
            answers: Row = {"q1": self._pick(_ANSWERS), "q2": self._pick(_ANSWERS)}
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
        meant = [entry for entry in _MILESTONES if entry[5] in (person.role, "all", None)]
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


def _cohorts(users: int, seed: int, now: datetime) -> Iterator[list[Record]]:
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
        # Stable: what happens in the same second stays in the order in which it was written.
        cohort.records.sort(key=lambda entry: entry[0])
        yield [record for _, record in cohort.records]
        first += size


def programme(users: int, seed: int, now: datetime) -> Iterator[Record]:
    """Yield a programme of `users` users, at least 2, all of it to be accepted without a remark.

    Every record comes after what it refers to. All eight entities occur, in about the proportions
    of the specification, at least 9.5 records a user; some come again with news, some are deleted.
    Times reach over two years up to `now`, which needs a time zone. The same arguments give the
    same records. Raises ValueError.
    """
    return chain.from_iterable(_cohorts(users, seed, now))


def stream(records: int, seed: int, now: datetime, bad_share: float = 0.03) -> Iterator[Record]:
    """Yield at least `records` records: a programme, shuffled, with `bad_share` of them spoiled.

    All kinds of faults take turns. A reference may come up to `WINDOW` records late: whoever sends
    slowly needs a grace of that many. A second claim to an address comes `DUPLICATE_GAP` records
    after the first, or at the end. Memory does not grow with `records`. Raises ValueError.
    """
    if not 0 <= bad_share < 1:
        raise ValueError("bad_share must be at least 0 and less than 1")
    users = max(2, ceil(records * (1 - bad_share) / (1 + sum(_PER_USER.values()))) + 1)
    spoiler = _Spoiler(Random(f"faults {seed}"), now, bad_share)
    yield from _shuffled(spoiler.mix(_cohorts(users, seed, now)), Random(f"order {seed}"))
    yield from spoiler.claims(0)


class _Spoiler:
    """Adds faults to cohorts, so that they are `share` of all that comes out."""

    def __init__(self, rng: Random, now: datetime, share: float) -> None:
        self._rng = rng
        self._now = now
        self._for_each = share / (1 - share)
        self._kinds = cycle(faults.KINDS)
        self._due = 0.0
        self._position = 0
        # Addresses that can be claimed again, oldest first, and how many claims are due.
        self._holders: deque[tuple[int, bytes]] = deque(maxlen=4_000)
        self._claims = 0

    def mix(self, cohorts: Iterator[list[Record]]) -> Iterator[Record]:
        for cohort in cohorts:
            self._due += len(cohort) * self._for_each
            spoiled = self._spoil(cohort, int(self._due))
            self._due -= int(self._due)
            spoiled += self.claims(DUPLICATE_GAP + WINDOW)
            mixed = cohort + spoiled
            self._position += len(mixed)
            self._holders += [
                (self._position, r.value) for r in cohort if r.entity == "users" and r.value
            ]
            yield from mixed

    def claims(self, gap: int) -> list[Record]:
        """Make the claims that are due to addresses first used at least `gap` records ago."""
        made: list[Record] = []
        while self._claims and self._holders and self._position - self._holders[0][0] >= gap:
            made.append(self._make("duplicate_email", "users", self._holders.popleft()[1]))
            self._claims -= 1
        return made

    def _spoil(self, cohort: list[Record], count: int) -> list[Record]:
        by_entity: dict[str, list[bytes]] = {entity: [] for entity in faults.ENTITIES}
        for record in cohort:
            if record.value is not None:
                by_entity[record.entity].append(record.value)
        made: list[Record] = []
        for _ in range(count):
            kind = next(self._kinds)
            if kind == "duplicate_email":
                self._claims += 1
                continue
            entity = self._rng.choice(faults.entities_of(kind))
            made.append(self._make(kind, entity, self._rng.choice(by_entity[entity])))
        return made

    def _make(self, kind: str, entity: str, good: bytes) -> Record:
        row = msgspec.json.decode(good, type=dict[str, object])
        return faults.make(kind, self._rng, entity, row, self._now)


def _shuffled(records: Iterator[Record], rng: Random) -> Iterator[Record]:
    """Move each record back by less than `WINDOW` places, all of one key by the same number."""
    waiting: list[tuple[float, int, Record]] = []
    for position, record in enumerate(records):
        if record.key is None:
            shift = rng.random()
        else:
            shift = zlib.crc32(f"{record.entity} {record.key}".encode()) / 2**32
        while waiting and waiting[0][0] <= position:
            yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (position + shift * WINDOW, position, record))
    while waiting:
        yield heapq.heappop(waiting)[2]
