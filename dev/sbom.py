"""Describe an image by the packages in it, as a CycloneDX document (an SBOM)."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from scripts import core, engine, wheelhouse

LIST_TIMEOUT = 120.0
"""Seconds to list the packages of an image. It takes 1."""
PYTHON = """
import importlib.metadata, json
print(json.dumps(sorted({(d.name, d.version) for d in importlib.metadata.distributions()})))
"""
"""A program that lists the Python packages."""
DEBIAN = r"""
dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n'
. /etc/os-release
echo "$VERSION_ID"
"""
"""A script that lists Debian's packages, and at last the release's number."""


def of_image(image: str, name: str) -> dict[str, Any]:
    """Return the document of a runtime image. Of wheels it has the hashes that pip has checked.

    Raises:
        core.Failure: a Python package of the image is not among the wheels that it was built from.
    """
    wheels = _wheels()
    components = []
    for package, version in json.loads(_ask(image, "/opt/venv/bin/python", "-I", "-c", PYTHON)):
        plain = re.sub(r"[-_.]+", "-", package).lower()
        if (plain, version) not in wheels:
            raise core.Failure(f"{image} holds {package} {version}, which no wheel in .flowerbed/wheels is.")
        found = _component(package, version, f"pkg:pypi/{quote(plain)}@{quote(version)}")
        components.append({**found, "hashes": [{"alg": "SHA-256", "content": wheels[plain, version]}]})
    *debian, release = _ask(image, "sh", "-euc", DEBIAN).splitlines()
    for line in debian:
        package, version, architecture = line.split()
        where = f"?arch={architecture}&distro=debian-{release}"
        components.append(_component(package, version, f"pkg:deb/debian/{package}@{quote(version)}{where}"))
    title, _, number = name.partition(" ")
    described = {"type": "container", "bom-ref": title, "name": title, "version": number}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": described},
        "components": components,
    }


def _component(name: str, version: str, address: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": address, "name": name, "version": version, "purl": address}


def _wheels() -> dict[tuple[str, str], str]:
    """Return the hash of each wheel of the runtime image, by the package's plain name and version."""
    found = {}
    for path in wheelhouse.RUNTIME.folder.glob("*.whl"):
        name, version, *_ = path.name.split("-")
        found[re.sub(r"[-_.]+", "-", name).lower(), version] = wheelhouse.hash_of(path)
    return found


def _ask(image: str, program: str, *words: str) -> str:
    """Run a program of an image in a container that can reach and change nothing, and return its output."""
    command = [engine.docker(), "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    command += ["--entrypoint", program, image, *words]
    return core.must(core.run(command, timeout=LIST_TIMEOUT), f"Listing the packages of {image}").decode()
