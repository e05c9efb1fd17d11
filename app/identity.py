"""Who acts: a person, a DICOM application entity or Hilum itself."""

from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["user", "ae", "system"]
Role = Literal["clinician", "administrator"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody whose acts are audited by name."""

    name: str  # user name or AE title
    kind: ActorKind
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        """Whether the actor holds the role."""
        return role in self.roles


LOCAL_USER = Actor(name="local", kind="user", roles=frozenset({"clinician", "administrator"}))
SYSTEM = Actor(name="hilum", kind="system", roles=frozenset())
