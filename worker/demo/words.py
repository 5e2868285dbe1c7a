"""The words of the made-up programme: people's names in many scripts, places, sentences."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Tongue:
    """Names that go together, each as a pair: as written, and as in an email address."""

    preferences: tuple[str, ...]
    first: tuple[tuple[str, str], ...]
    last: tuple[tuple[str, str], ...]


def _tongue(preferences: str, first: str, last: str) -> Tongue:
    def names(text: str) -> tuple[tuple[str, str], ...]:
        pairs = (entry.partition("/") for entry in text.split(", "))
        return tuple((shown, slug or shown.lower()) for shown, _, slug in pairs)

    return Tongue(tuple(preferences.split(", ")), names(first), names(last))


TONGUES: Final = (
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
DOMAINS: Final = ("example.org", "example.com", "mail.example.org", "post.example.com")
CITIES: Final = (
    "Oslo, Norway", "Bergen, Norway", "Tromsø, Norway", "Ålesund, Norway", "Bodø", "Malmö, Sverige",
    "København, Danmark", "Kraków, Polska", "Málaga, España", "Göteborg", "Kristiansand, Norway",
)  # fmt: skip
INTERESTS: Final = (
    "hiking", "cooking", "football", "knitting", "board games", "photography", "swimming",
    "café", "gardening", "music", "chess", "langrenn", "poetry", "українська кухня", "yoga",
)  # fmt: skip
PLACES: Final = (
    "Cafe Downtown", "Deichman Bjørvika", "Community Center", "Kulturhuset, 2nd floor",
    "Grünerløkka", "Sognsvann", "Røde Kors-huset", "Zoom", 'Kafé "Hjertet"', "City Library",
)  # fmt: skip
OUTINGS: Final = (
    ("hangout", "Coffee meetup"), ("hangout", "Kaffe og prat"), ("walk", "Tur rundt Sognsvann"),
    ("dinner", "Cooked phở together"), ("museum", "Munch: the new exhibition"),
    ("sport", "Football"), ("study", "Language café, then homework"),
    ("trip", "Day trip to Drøbak\nBring warm clothes"),
    ("cinema", "Film night: «Verdens verste menneske»"), ("errand", "NAV, moral support"),
)  # fmt: skip
FORMAL: Final = (
    ("Workshop: CV Writing", "educational", ("career", "skills"), (4, 8)),
    ("Språkkafé", "language", ("language",), (4, 10)),
    ("Ramadan & Easter: a shared table", "cultural", ("food", "faith", "culture"), (10, 16)),
    ("Jobbmesse 2.0", "professional", ("career",), (8,)),
    ("Summer picnic", "social", ("family", "outdoors"), (3, 11)),
    ("Ask a lawyer, free of charge", "support", ("rights", "housing"), (10, 16)),
    ("Skiing for beginners", "recreational", ("outdoors", "sport"), (3,)),
    ("Volunteers' evening", "other", (), (17,)),
)
SKILLS: Final = (
    (1, "JavaScript Basics", "tech"), (2, "Norwegian A2: grammar", "language"),
    (7, "Excel", "tech"),
    (12, "Baking sourdough", "cooking"), (19, "Oud, first steps", "music"),
    (23, "Budgeting", "life"),
    (42, "Bicycle repair", "crafts"), (57, "Interview training", "career"),
    (58, "Public speaking", None),
    (64, "Håndarbeid", "crafts"), (71, "Вишивка", "crafts"),
    (88, "Tax returns (skattemelding)", "life"),
)  # fmt: skip
MILESTONES: Final = (
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
SENTENCES: Final = (
    "Great session!", "Learned a lot.", "Veldig hyggelig!", "We talked about work and snow.",
    "شكرا جزيلا على المساعدة.", "Дуже дякую за підтримку!", "Cảm ơn bạn!", "¡Qué buena charla!",
    'He said "come again", so I will.', "Could be better prepared; we lost half an hour.",
    "Next time: bring the forms, the laptop and a charger.", "Bardzo pomocne.", "👍", "OK",
    "It was hard to find a time that suits us both, but when we met it was worth it every time.",
    "Vi snakket mest norsk.\nLitt engelsk også.", "=) see you soon", "- patient\n- kind\n- late",
)  # fmt: skip
ANSWERS: Final = ("yes", "no", "sometimes", "vet ikke")
END_REASONS: Final = (
    "completed", "completed", "completed", "participant_request", "buddy_request", "inactivity",
    "mutual_agreement", "violation", "program_ended", "other",
)  # fmt: skip
FORMATS: Final = ("in-person", "in-person", "online", "hybrid")
LEVELS: Final = ("beginner", "intermediate", "advanced")
PROGRESS: Final = ("no-progress", "some-progress", "good-progress", "excellent-progress")
MOODS: Final = ("great", "good", "good", "okay", "struggling", "difficult")
