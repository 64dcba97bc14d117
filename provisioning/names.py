"""How a participant is called in Compose: its service, its image and its volume share one name."""

from __future__ import annotations

import re


def service_name(participant: str) -> str:
    """Return the Compose service of a participant.

    A server, site or relay keeps its name; a person's is the part of the e-mail address before the @
    (`Jane.Doe@lab.example` is `jane-doe`), since image names know only lower-case letters, digits and `-`.
    """
    local, at, _ = participant.partition("@")
    return re.sub(r"[^a-z0-9]+", "-", local.lower()).strip("-") if at else participant
