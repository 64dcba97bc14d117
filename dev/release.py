"""Make a release: the steps of `.github/workflows/release.yml`, which a person can run too.

  python -m dev.release check v0.1.0               tag, version and changelog agree, nothing is uncommitted
  python -m dev.release packages dist              wheel and sdist, built twice and compared
  python -m dev.release image NAME dist [--push]   the runtime image for the engine's architecture, its SBOM
  python -m dev.release index NAME dist            one image of all architectures, in the registry
  python -m dev.release files dist                 images.json, the notes, SHA256SUMS
  python -m dev.release upload dist                wheel and sdist to PyPI, by trusted publishing
NAME is the image's name with its registry.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from dev import sbom, test
from scripts import base_image, core, engine, images, published, wheelhouse

SUMS, IMAGES, NOTES = "SHA256SUMS", "images.json", "NOTES.md"
"""Files of a release: everything's hashes, the images' digests, and what changed."""
HEADING = re.compile(r"(?m)^## \[([^\]]+)\] - (.+)$")
"""A version's heading in CHANGELOG.md."""
BUILD_TIMEOUT = 300.0
"""Seconds for one package. It takes 2."""
PUSH_TIMEOUT = 1800.0
"""Seconds to push one image, of about 200 MB when compressed, or to publish packages."""

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None, no_args_is_help=True)
Out = Annotated[Path, typer.Argument(help="The folder of the release's files.")]
Name = Annotated[str, typer.Argument(help="The image's name with its registry, without a tag.")]


@app.command()
def check(tag: Annotated[str, typer.Argument(help="The tag, such as v0.1.0.")]) -> None:
    """Check that tag, version and changelog agree, and that nothing is uncommitted."""
    version, wrong = core.version(), []
    if tag != f"v{version}":
        wrong.append(f"pyproject.toml has version {version}: expected the tag v{version}, found {tag}")
    top, date = _top()
    if top != version:
        wrong.append(f"CHANGELOG.md begins with {top}: expected {version}")
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        wrong.append(f"CHANGELOG.md dates {top} '{date}': expected a date such as 2026-12-31")
    if changed := git("status", "--porcelain").strip():
        wrong.append(f"expected a tree without changes, found:\n{changed}")
    if wrong:
        raise core.Failure("No release can be made:\n  " + "\n  ".join(wrong))
    core.say(f"{tag} can be released.")


@app.command()
def packages(out: Out) -> None:
    """Build wheel and sdist, and the wheel again from the sdist. Fail if a second build differs."""
    test.install()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second, third = (folder / part for part in ("first", "second", "third"))
        build(core.ROOT, first)
        # Other users have other umasks.
        before = os.umask(0o077)
        try:
            build(core.ROOT, second)
            (sdist,) = second.glob("*.tar.gz")
            with tarfile.open(sdist) as archive:
                archive.extractall(third, filter="data")
            build(third / sdist.name.removesuffix(".tar.gz"), third, wheel_only=True)
        finally:
            os.umask(before)
        for path in sorted(first.iterdir()):
            if wheelhouse.hash_of(path) != wheelhouse.hash_of(second / path.name):
                raise core.Failure(f"Two builds of {path.name} differ: expected the same bytes.")
            if path.suffix == ".whl" and wheelhouse.hash_of(path) != wheelhouse.hash_of(third / path.name):
                raise core.Failure(f"{path.name} differs if it is built from the sdist: it lacks a file.")
            shutil.move(path, out / path.name)
            core.say(f"  {path.name}")


def build(root: Path, folder: Path, *, wheel_only: bool = False) -> None:
    """Build the packages of a tree into a folder."""
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "wheel"]
    words += [] if wheel_only else ["-t", "sdist"]
    env = {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").strip()}
    core.must(core.run(words, cwd=root, env=env, timeout=BUILD_TIMEOUT), "Building the packages")


@app.command()
def image(
    name: Name, out: Out, push: Annotated[bool, typer.Option("--push", help="Push it, too.")] = False
) -> None:
    """Build the runtime image of the engine's architecture. Write its SBOM and, if pushed, its digest."""
    out.mkdir(parents=True, exist_ok=True)
    engine.ensure()
    base_image.ensure(renew=push)
    architecture = engine.ask().architecture
    wheelhouse.prepare()
    wheelhouse.RUNTIME.fill(architecture)
    wheelhouse.RUNTIME.check()
    tag = f"{name}:{core.version()}-{architecture}"
    images.build("runtime", tag, labels=labels(), fresh=push)
    document = sbom.of_image(tag, f"flowerbed-runtime {core.version()}")
    (out / f"flowerbed-runtime-{architecture}.cdx.json").write_text(json.dumps(document, indent=1) + "\n")
    if push:
        core.must(core.run([engine.docker(), "push", "--quiet", tag], timeout=PUSH_TIMEOUT), f"Pushing {tag}")
        found = (engine.image(tag) or {}).get("RepoDigests") or ()
        digests = [digest for digest in found if digest.startswith(f"{name}@sha256:")]
        if len(digests) != 1:
            raise core.Failure(f"{tag}: expected one digest of {name} after the push, found {list(found)}.")
        (out / f"digest-{architecture}").write_text(digests[0] + "\n")
    core.say(f"  {tag}")


def labels() -> dict[str, str]:
    """Return the labels of a published image."""
    return {
        published.VERSION: core.version(),
        "org.opencontainers.image.title": "flowerbed-runtime",
        "org.opencontainers.image.revision": git("rev-parse", "HEAD").strip(),
        "org.opencontainers.image.licenses": "Apache-2.0",
    }


@app.command()
def index(name: Name, out: Out) -> None:
    """Join the pushed images of all architectures under one digest, and print it."""
    parts = [path.read_text().strip() for path in sorted(out.glob("digest-*"))]
    if not parts:
        raise core.Failure(f"{out}: expected a file digest-ARCHITECTURE for each image, found none.")
    tag = f"{name}:{core.version()}"
    tools = [engine.docker(), "buildx", "imagetools"]
    core.must(core.run([*tools, "create", "--tag", tag, *parts], timeout=PUSH_TIMEOUT), f"Joining {tag}")
    shown = core.run([*tools, "inspect", tag, "--format", "{{json .Manifest}}"], timeout=PUSH_TIMEOUT)
    digest = json.loads(core.must(shown, f"Asking for the digest of {tag}")).get("digest")
    if not published.DIGEST.fullmatch(f"{name}@{digest}"):
        raise core.Failure(f"{tag}: expected a digest sha256:..., found '{digest}'.")
    (out / "digest").write_text(f"{name}@{digest}\n")
    print(digest)


@app.command()
def files(out: Out) -> None:
    """Write images.json, the notes, and the hashes of all files. Remove the files with single digests."""
    found: dict[str, str] = {}
    for path in sorted(out.glob("digest*")):
        found[path.name.removeprefix("digest").lstrip("-") or "all"] = path.read_text().strip()
        path.unlink()
    content: dict[str, Any] = {"version": core.version(), "commit": git("rev-parse", "HEAD").strip()}
    (out / IMAGES).write_text(json.dumps({**content, "flowerbed-runtime": found}, indent=1) + "\n")
    (out / NOTES).write_text(notes(core.version()))
    (out / SUMS).write_text(
        "".join(f"{wheelhouse.hash_of(p)}  {p.name}\n" for p in sorted(out.iterdir()) if p.name != SUMS)
    )


@app.command()
def upload(out: Out) -> None:
    """Upload wheel and sdist to PyPI. uv gets its token from the workflow's OIDC identity."""
    test.install()
    program = Path(sys.executable).with_name("uv")
    paths = [str(path) for kind in ("*.whl", "*.tar.gz") for path in sorted(out.glob(kind))]
    if len(paths) != 2:
        raise core.Failure(f"{out}: expected one wheel and one sdist, found {len(paths)} packages.")
    words = [str(program), "publish", "--trusted-publishing", "always", *paths]
    core.must(core.run(words, timeout=PUSH_TIMEOUT), "Uploading the packages")


def notes(version: str) -> str:
    """Return a version's part of CHANGELOG.md, without its heading."""
    text = (core.ROOT / "CHANGELOG.md").read_text()
    headings = list(HEADING.finditer(text))
    for number, heading in enumerate(headings):
        if heading[1] == version:
            end = headings[number + 1].start() if number + 1 < len(headings) else len(text)
            return text[heading.end() : end].strip() + "\n"
    raise core.Failure(f"CHANGELOG.md: expected a heading '## [{version}] - DATE', found none.")


def _top() -> tuple[str, str]:
    """Return version and date of the first heading in CHANGELOG.md."""
    heading = HEADING.search((core.ROOT / "CHANGELOG.md").read_text())
    return (heading[1], heading[2]) if heading else ("no version", "")


def git(*words: str) -> str:
    """Run git in the checkout, and return what it prints."""
    done = core.run(["git", *words], cwd=core.ROOT)
    return core.must(done, f"git {words[0]}").decode()


def main(words: list[str] | None = None) -> int:
    """Run one step, and return the exit code."""
    try:
        app(words, "python -m dev.release", standalone_mode=False)
    except core.Failure as failure:
        core.say(f"release: {failure}")
        return failure.exit_code
    except typer.Exit as done:
        return done.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
