"""Name participants in Compose: a participant's service, image and volume share one name."""

from __future__ import annotations

import re


def service_name(participant: str) -> str:
    """Return the Compose service of a participant.

    A server, site or relay keeps its name. A person's service has the part of the email address before the @
    (`Jane.Doe@lab.example` is `jane-doe`), since image names allow only lower-case letters, digits and `-`.
    """
    local, at, _ = participant.partition("@")
    return re.sub(r"[^a-z0-9]+", "-", local.lower()).strip("-") if at else participant
