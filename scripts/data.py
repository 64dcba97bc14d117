"""Divide Fashion-MNIST over the sites: each gets its part in data/SITE.

The parts are in the dataset's own format. The images come from Debian's package dataset-fashion-mnist where
apt works, else from the addresses that torchvision uses. No image goes to two sites. The same sites, alpha
and seed give the same parts, and a second run changes nothing. Fashion-MNIST files that did not come from
here are never touched. A site on another machine, or with `data` elsewhere, gets no part.

  ./flowerbed data                 after adding a site to project.yml
  ./flowerbed data --alpha 0.3     uneven classes: the smaller alpha, the more uneven
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from bridge.common import site_settings
from provisioning import site_files
from provisioning.keys import ELSEWHERE
from scripts import progress, provision
from scripts.core import HOUSE, ROOT, Failure, UsageError, say
from scripts.core import run as command
from scripts.json_object import JsonObject

DATA = ROOT / "data"
ORIGINALS = HOUSE / "fashion-mnist"
"""The four files as published, kept so that a new split needs no new download."""
PACKAGE = "dataset-fashion-mnist"
PACKAGE_SIZE = 31e6
"""Bytes of the package, for a progress bar."""
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""The folder of the Debian package's files."""
ADDRESSES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""MD5 sums of the published files, from torchvision 0.28. Debian's files differ in their gzip headers."""
SHAPES = {"train": (60_000, 28, 28), "t10k": (10_000, 28, 28)}
WORDS = {"train": "train", "t10k": "test"}
"""The manifest's names of the two splits that the files call train and t10k."""
CLASSES = 10
DOWNLOAD_SECONDS = 60.0
"""Seconds of silence after which the next address is tried."""
FEWEST = 10
"""Fewest training or test images of a site. A split that leaves it fewer is drawn again."""
DRAWS = 200

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]

Alpha = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="Divide each class over the sites by a Dirichlet(A) draw: 0.1 is very uneven, 100 nearly even. "
        "Without it every site gets the same mix.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="The seed of the random split.")]


JSON = JsonObject(
    {
        "dataset": "`Fashion-MNIST`. These keys are in `data/manifest.json` too",
        "sites": "the sites that have a part",
        "alpha": "the alpha that was given, or null",
        "seed": "the seed",
        "complete": "false if the last run was interrupted",
        "written": "all sites that ever got a part",
        "counts": "by site: `train` and `test`, each with `images` and the number of each of the `classes`",
    }
)


def run(alpha: Alpha = None, seed: Seed = 0) -> dict[str, Any]:
    """Make every site's part. Returns the manifest in data/manifest.json."""
    manifest = prepare(sites_without_data(), alpha=alpha, seed=seed)
    say(table(manifest))
    say("Running sites see new parts at once. Nothing has to be restarted.")
    return manifest


def sites_without_data() -> list[str]:
    """Return the sites that need a part: those on this machine, without another data folder."""
    away, others, needy = (list[str]() for _ in range(3))
    for item in provision.load(provision.DEFAULT_PROJECT)["participants"]:
        if item["type"] != site_files.SITE:
            continue
        folders = site_settings.folders(site_files.settings(item).get(site_settings.DATA))
        places = [(ROOT / folder.source).resolve() for folder in folders]
        has_own = places and (DATA / item["name"]).resolve() not in places
        (away if item.get(ELSEWHERE) else others if has_own else needy).append(item["name"])
    if not needy:
        sites = ", ".join(provision.site_names())
        raise UsageError(f"Each site has data elsewhere ({sites}): expected one that needs a part.")
    if others:
        say(f"data: {', '.join(others)}: data elsewhere (project.yml), so no part")
    if away:
        say(f"data: {', '.join(away)}: on another machine, which has its own data, so no part")
    return needy


def prepare(
    sites: Sequence[str],
    *,
    alpha: float | None = None,
    seed: int = 0,
    data: Path | None = None,
    originals: Callable[[], Path] | None = None,
) -> dict[str, Any]:
    """Make sure that every site has its part, and return the manifest.

    Args:
        sites: their names. A part goes to data/NAME/FashionMNIST/raw.
        alpha: None for an even split, else the concentration of the Dirichlet draw (above 0).
        seed: the split's seed. The same sites, alpha and seed give the same parts everywhere.
        originals: gets the four published files and returns their folder (default: `fetch`).
    """
    if alpha is not None and not alpha > 0:
        raise UsageError(f"--alpha {alpha}: expected a number above 0.")
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected a whole number of at least 0.")
    data = data or DATA
    wanted = {"dataset": "Fashion-MNIST", "sites": list(sites), "alpha": alpha, "seed": seed}
    path = data / "manifest.json"
    found = read_manifest(path)
    if found.get("complete") and all(found.get(k) == v for k, v in wanted.items()) and present(data, found):
        say(f"data: every site has its part already ({path.parent.name}/manifest.json)")
        return found
    refuse_foreign(data, sites, found)

    folder = (originals or fetch)()
    images = {split: read_idx(folder / f"{split}-images-idx3-ubyte.gz") for split in SHAPES}
    labels = {split: read_idx(folder / f"{split}-labels-idx1-ubyte.gz") for split in SHAPES}
    parts = divide(labels, len(sites), alpha, seed)

    # Claim the folders even if this is interrupted: the next call must not take them for someone else's.
    written = sorted({*found.get("written", []), *sites})
    write_json(path, {**wanted, "complete": False, "written": written})
    counts: dict[str, Any] = {}
    for number, site in enumerate(sites):
        raw = raw_folder(data, site)
        for folder_of_site in (raw.parent.parent, raw.parent, raw):
            folder_of_site.mkdir(parents=True, exist_ok=True)
            folder_of_site.chmod(0o755)  # For the containers, which run as a different user, under any umask.
        counts[site] = {}
        for split in SHAPES:
            chosen = parts[split][number]
            write_idx(raw / f"{split}-images-idx3-ubyte", images[split][chosen])
            write_idx(raw / f"{split}-labels-idx1-ubyte", labels[split][chosen])
            classes = np.bincount(labels[split][chosen], minlength=CLASSES).tolist()
            counts[site][WORDS[split]] = {"images": len(chosen), "classes": classes}
    manifest = {**wanted, "complete": True, "written": written, "counts": counts}
    write_json(path, manifest)
    kind = "the same mix everywhere" if alpha is None else f"Dirichlet, alpha {alpha:g}"
    say(f"data: Fashion-MNIST divided over {len(sites)} sites ({kind}, seed {seed})")
    return manifest


def table(manifest: dict[str, Any]) -> str:
    """Return a table for a person: training images of every class by site, and the totals."""
    lines = ["  site          training    test   training images of class 0 … 9"]
    for site, parts in manifest["counts"].items():
        classes = " ".join(f"{n:5d}" for n in parts["train"]["classes"])
        lines.append(f"  {site:12s} {parts['train']['images']:9d} {parts['test']['images']:7d}   {classes}")
    return "\n".join(lines)


def divide(labels: dict[str, Bytes], sites: int, alpha: float | None, seed: int) -> dict[str, list[Indices]]:
    """Return the images of each site: for each split a list by site. Every image goes to one site.

    With `alpha`, a class is divided in the same proportions in every split, so that a site's test
    images look like its training images.

    Raises:
        UsageError: no draw leaves every site enough images.
    """
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        even = np.full((CLASSES, sites), 1 / sites)
        shares = even if alpha is None else rng.dirichlet([alpha] * sites, CLASSES)
        parts = {split: _assign(values, shares, rng) for split, values in labels.items()}
        if min(len(part) for split in parts.values() for part in split) >= FEWEST:
            return parts
    raise UsageError(
        f"No split of Fashion-MNIST over {sites} sites leaves each at least {FEWEST} training and {FEWEST} "
        f"test images ({DRAWS} draws with alpha {alpha}). Take a larger --alpha or fewer sites."
    )


def _assign(labels: Bytes, shares: NDArray[np.float64], rng: np.random.Generator) -> list[Indices]:
    sites: list[list[Indices]] = [[] for _ in range(shares.shape[1])]
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(shares[label])[:-1] * len(members)).astype(int)
        for site, part in zip(sites, np.split(members, ends), strict=True):
            site.append(part)
    # Shuffled, because an app that reads only the first images must not see one class only.
    return [rng.permutation(np.concatenate(parts)) for parts in sites]


def fetch(folder: Path = ORIGINALS) -> Path:
    """Return the folder with the four published files, from the first source that has them.

    Raises:
        Failure: no source has them. The text names every source and its error.
    """
    tried: list[str] = []
    for candidate in (folder, INSTALLED):
        if all((candidate / name).is_file() for name in MD5):
            return candidate
    for source in (from_package, from_addresses):
        with tempfile.TemporaryDirectory() as scratch:
            reason = source(Path(scratch))
            if reason:
                tried.append(reason)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for name in MD5:
                shutil.copyfile(Path(scratch) / name, folder / f"{name}.new")
                (folder / f"{name}.new").replace(folder / name)
            return folder
    raise Failure(
        "Could not get Fashion-MNIST:\n    "
        + "\n    ".join(tried)
        + f"\n  Put {', '.join(MD5)} into {folder} yourself (from another machine), then run this again."
    )


def from_package(scratch: Path) -> str:
    """Unpack Debian's package into `scratch` without installing it. Return the error, or an empty string."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return f"Debian's package {PACKAGE}: no apt-get here"
    say(f"data: getting Debian's package {PACKAGE} (31 MB)")
    words = ["apt-get", "download", PACKAGE]
    fetch = partial(progress.of_files, words, scratch, PACKAGE, PACKAGE_SIZE, cwd=scratch, timeout=600)
    got = fetch()
    if got.returncode:  # A fresh machine has no package lists. Only root may get them.
        command(["apt-get", "update"], timeout=600)
        got = fetch()
    if got.returncode:
        return f"Debian's package {PACKAGE}: {last_line(got.stderr)}"
    archive = next(scratch.glob("*.deb"))
    unpacked = command(["dpkg-deb", "-x", archive, scratch])
    if unpacked.returncode:
        return f"Debian's package {PACKAGE}: {last_line(unpacked.stderr)}"
    for name in MD5:
        inside = scratch / INSTALLED.relative_to("/") / name
        if not inside.is_file():
            return f"Debian's package {PACKAGE}: it lacks {INSTALLED / name}"
        inside.replace(scratch / name)
    return ""


def from_addresses(scratch: Path) -> str:
    """Download the files into `scratch` and check their MD5. Return the error, or an empty string."""
    # Imported here, since it takes a while.
    import httpx

    reasons = []
    for address in ADDRESSES:
        say(f"data: downloading from {address} (31 MB)")
        try:
            for name, md5 in MD5.items():
                content = _download(address + name)
                found = hashlib.md5(content, usedforsecurity=False).hexdigest()
                if found != md5:
                    raise ValueError(f"{name} has MD5 {found}, expected {md5}")
                (scratch / name).write_bytes(content)
        except (httpx.HTTPError, OSError, ValueError) as error:
            reasons.append(f"{address}: {error}")
        else:
            return ""
    return "\n    ".join(reasons)


def _download(address: str) -> bytes:
    """Return the content of an address, and show its bytes arrive."""
    import httpx

    content = bytearray()
    with (
        httpx.stream("GET", address, timeout=DOWNLOAD_SECONDS, follow_redirects=True) as response,
        progress.Bar(address.rpartition("/")[2], in_bytes=True) as bar,
    ):
        response.raise_for_status()
        total = float(response.headers.get("Content-Length", 0)) or None
        for part in response.iter_bytes():
            content += part
            bar.at(response.num_bytes_downloaded, total=total)
    return bytes(content)


def read_idx(path: Path) -> Bytes:
    """Read one gzipped IDX file of bytes.

    Raises:
        Failure: it is not such a file or has not the shape of Fashion-MNIST.
    """
    rows = SHAPES[path.name.split("-")[0]]
    expected = rows if "images" in path.name else rows[:1]
    try:
        with gzip.open(path) as file:
            content = file.read()
        magic, dimensions = content[:3], content[3]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        array: Bytes = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        if magic != b"\x00\x00\x08" or shape != expected or array.size != np.prod(expected):
            raise ValueError(f"it has an array of shape {shape}, expected bytes of shape {expected}")
    except (OSError, EOFError, IndexError, struct.error, ValueError) as error:
        text = f"{path} is not Fashion-MNIST's file: {error}. Remove it and run this again."
        raise Failure(text) from error
    return array.reshape(shape)


def write_idx(path: Path, array: Bytes) -> None:
    """Write an IDX file of bytes, uncompressed, as torchvision reads it.

    The file is replaced whole and its folder stays, because a running container has the folder mounted.
    """
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    replace(path, header + array.tobytes())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps(content, indent=2).encode() + b"\n")


def replace(path: Path, content: bytes) -> None:
    """Write a file that every user may read (containers run as a different user), or keep the old one."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.replace(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of an earlier split, or an empty mapping."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def raw_folder(data: Path, site: str) -> Path:
    """Return the folder in which torchvision's FashionMNIST(root=data/SITE) looks."""
    return data / site / "FashionMNIST" / "raw"


def present(data: Path, manifest: dict[str, Any]) -> bool:
    """Return whether every file of the manifest exists with its size (bytes: header + one per value)."""
    for site, parts in manifest["counts"].items():
        for prefix, split in WORDS.items():
            images = parts[split]["images"]
            for name, size in (("images-idx3", 16 + images * 28 * 28), ("labels-idx1", 8 + images)):
                file = raw_folder(data, site) / f"{prefix}-{name}-ubyte"
                if not file.is_file() or file.stat().st_size != size:
                    return False
    return True


def refuse_foreign(data: Path, sites: Sequence[str], manifest: dict[str, Any]) -> None:
    """Stop before overwriting files that no earlier split wrote."""
    ours = manifest.get("written", [])
    for site in sites:
        raw = raw_folder(data, site)
        if site not in ours and raw.is_dir() and any(raw.iterdir()):
            raise Failure(
                f"data/{site}/FashionMNIST holds files that flowerbed did not write, so it will not replace "
                f"them. Move data/{site}/FashionMNIST away to get a part of Fashion-MNIST there."
            )


def last_line(output: bytes) -> str:
    """Return the last line of a tool's output."""
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
