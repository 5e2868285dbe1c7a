"""Users: docs/spec.md, section 1."""

from schemas.fields import Email, Id, Name, Role, Row, Text, Texts, Timestamp


class User(Row, kw_only=True, gc=False):
    """A participant or a buddy."""

    id: Id
    email: Email
    first_name: Name
    last_name: Name
    role: Role
    joined_at: Timestamp
    language_preference: Text | None = None
    interests: Texts | None = None
    location: Text | None = None
