"""Split a small imitation of the Fashion-MNIST files."""

from __future__ import annotations

import gzip
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provisioning import site_files
from scripts import data, provision
from scripts.core import Failure, UsageError

SHAPES = {"train": (2000, 28, 28), "t10k": (1000, 28, 28)}


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write files in the published format. Every image carries its own number in its first two pixels."""
    monkeypatch.setattr(data, "SHAPES", SHAPES)
    folder = tmp_path / "originals"
    folder.mkdir()
    for split, shape in SHAPES.items():
        images = np.zeros(shape, np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(shape[0]) // 256, np.arange(shape[0]) % 256
        labels = (np.arange(shape[0]) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            with gzip.open(folder / f"{split}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(header + array.tobytes())
    return folder


def read(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read a file like torchvision: magic 0x0000 08 dimensions, big-endian sizes, bytes."""
    content = path.read_bytes()
    dimensions = content[3]
    assert content[:3] == b"\x00\x00\x08"
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def numbers(folder: Path, site: str, split: str) -> list[int]:
    images = read(folder / site / "FashionMNIST" / "raw" / f"{split}-images-idx3-ubyte")
    return [int(high) * 256 + int(low) for high, low in images[:, 0, :2]]


def labels(folder: Path, site: str, split: str) -> list[int]:
    return list(read(folder / site / "FashionMNIST" / "raw" / f"{split}-labels-idx1-ubyte").tolist())


@pytest.mark.parametrize(("alpha", "sites"), [(None, ["a"]), (None, ["a", "b", "c"]), (0.5, ["a", "b", "c"])])
def test_every_image_goes_to_exactly_one_site_with_its_label(
    originals: Path, tmp_path: Path, alpha: float | None, sites: list[str]
) -> None:
    data.prepare(sites, alpha=alpha, data=tmp_path / "data", originals=lambda: originals)
    for split, shape in SHAPES.items():
        found = {site: numbers(tmp_path / "data", site, split) for site in sites}
        assert sorted(n for part in found.values() for n in part) == list(range(shape[0]))
        for site in sites:
            assert labels(tmp_path / "data", site, split) == [n % 10 for n in found[site]]


def test_the_even_split_is_even_in_every_class_and_in_no_order(originals: Path, tmp_path: Path) -> None:
    manifest = data.prepare(["a", "b"], data=tmp_path / "data", originals=lambda: originals)
    for site in ("a", "b"):
        assert manifest["counts"][site]["train"] == {"images": 1000, "classes": [100] * 10}
        assert manifest["counts"][site]["test"] == {"images": 500, "classes": [50] * 10}
    first = labels(tmp_path / "data", "a", "train")[:100]
    assert len(set(first)) == 10


def test_a_small_alpha_is_uneven_alike_in_training_and_test(originals: Path, tmp_path: Path) -> None:
    manifest = data.prepare(["a", "b"], alpha=0.2, data=tmp_path / "data", originals=lambda: originals)
    train = np.array(manifest["counts"]["a"]["train"]["classes"]) / 200
    test = np.array(manifest["counts"]["a"]["test"]["classes"]) / 100
    assert train.max() - train.min() > 0.5
    assert np.abs(train - test).max() <= 0.01


def test_the_split_depends_on_the_seed_only(originals: Path, tmp_path: Path) -> None:
    def split(folder: str, seed: int) -> list[int]:
        data.prepare(["a", "b"], alpha=1, seed=seed, data=tmp_path / folder, originals=lambda: originals)
        return numbers(tmp_path / folder, "a", "train")

    assert split("one", 7) == split("two", 7) != split("three", 8)


def test_doing_it_again_does_nothing_until_something_changed(originals: Path, tmp_path: Path) -> None:
    calls = []

    def source() -> Path:
        calls.append(1)
        return originals

    folder = tmp_path / "data"
    first = data.prepare(["a", "b"], data=folder, originals=source)
    image = folder / "a" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    stamp = image.stat().st_mtime_ns
    assert data.prepare(["a", "b"], data=folder, originals=source) == first
    assert (len(calls), image.stat().st_mtime_ns) == (1, stamp)
    changes: list[dict[str, Any]] = [{"sites": ["a", "b", "c"]}, {"alpha": 2.0}, {"seed": 1}]
    for count, change in enumerate(changes, start=2):
        wanted: dict[str, Any] = {"sites": ["a", "b"], **change}
        data.prepare(wanted.pop("sites"), **wanted, data=folder, originals=source)
        assert len(calls) == count
    image.write_bytes(b"short")
    data.prepare(["a", "b"], seed=1, data=folder, originals=source)
    assert len(calls) == 5 and len(numbers(folder, "a", "train")) == 1000


def test_a_new_split_keeps_the_folders_that_containers_have_mounted(originals: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    data.prepare(["a", "b"], data=folder, originals=lambda: originals)
    before = (folder / "a").stat().st_ino
    data.prepare(["a", "b"], seed=3, data=folder, originals=lambda: originals)
    assert (folder / "a").stat().st_ino == before
    assert not list(folder.rglob("*.new"))


def test_another_user_can_read_the_parts(originals: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    data.prepare(["a"], data=folder, originals=lambda: originals)
    for path in (folder / "a").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
    assert (folder / "a").stat().st_mode & 0o777 == 0o755


def test_files_of_somebody_else_are_left_alone(originals: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "b" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(Failure, match=r"data/b/FashionMNIST holds files that flowerbed did not write"):
        data.prepare(["a", "b"], data=tmp_path / "data", originals=lambda: originals)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "data" / "a").exists()


def test_an_interrupted_split_is_done_again(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    real = data.write_idx

    def interrupted(path: Path, array: Any) -> None:
        if "/b/" in str(path):
            raise KeyboardInterrupt
        real(path, array)

    monkeypatch.setattr(data, "write_idx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(["a", "b"], data=folder, originals=lambda: originals)
    monkeypatch.setattr(data, "write_idx", real)
    data.prepare(["a", "b"], data=folder, originals=lambda: originals)
    assert json.loads((folder / "manifest.json").read_text())["complete"] is True
    assert len(numbers(folder, "b", "t10k")) == 500


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"alpha": 0.0}, r"--alpha 0\.0: expected a number above 0"),
        ({"alpha": float("nan")}, r"--alpha nan"),
        ({"seed": -1}, r"--seed -1"),
        ({"sites": [f"s{i}" for i in range(150)]}, r"No split .* over 150 sites leaves each at least 10"),
    ],
)
def test_wrong_use(originals: Path, tmp_path: Path, wrong: dict[str, Any], error: str) -> None:
    wanted: dict[str, Any] = {"sites": ["a", "b"], **wrong}
    with pytest.raises(UsageError, match=error):
        data.prepare(wanted.pop("sites"), **wanted, data=tmp_path / "data", originals=lambda: originals)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", ["truncate", "not gzip", "other shape"])
def test_a_damaged_original_is_named(originals: Path, tmp_path: Path, damage: str) -> None:
    path = originals / "t10k-labels-idx1-ubyte.gz"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "not gzip":
        path.write_text("<html>404</html>")
    else:
        path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 3) + b"\x01\x02\x03"))
    with pytest.raises(Failure, match=r"t10k-labels-idx1-ubyte\.gz is not Fashion-MNIST's file"):
        data.prepare(["a", "b"], data=tmp_path / "data", originals=lambda: originals)


def test_fetch_goes_on_to_the_next_source_and_keeps_what_it_got(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "INSTALLED", tmp_path / "no-package")
    monkeypatch.setattr(data, "from_package", lambda scratch: "no apt")

    def from_addresses(scratch: Path) -> str:
        for name in data.MD5:
            (scratch / name).write_bytes((originals / name).read_bytes())
        return ""

    monkeypatch.setattr(data, "from_addresses", from_addresses)
    kept = tmp_path / "kept"
    assert data.fetch(kept) == kept
    assert {path.name for path in kept.iterdir()} == set(data.MD5)
    monkeypatch.setattr(data, "from_addresses", lambda scratch: pytest.fail("fetched twice"))
    assert data.fetch(kept) == kept


def test_fetch_names_every_source_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "INSTALLED", tmp_path / "no-package")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(data, "ADDRESSES", (f"file://{tmp_path}/nowhere/",))
    with pytest.raises(Failure, match=r"no apt-get here\n.*nowhere/: .*\n.*Put train-images-idx3-ubyte\.gz"):
        data.fetch(tmp_path / "kept")


def test_a_download_with_another_checksum_is_refused(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = partial(SimpleHTTPRequestHandler, directory=originals)
    (tmp_path / "scratch").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever)
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(data, "ADDRESSES", (address, f"{address}nowhere/"))
        reasons = data.from_addresses(tmp_path / "scratch")
        server.shutdown()
    assert "expected 8d4fb7e6c68d591d4c3dfef9ec88bf0d" in reasons and "404" in reasons


def test_only_clients_are_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [{"name": "server", "type": "server"}, {"name": "site-2", "type": "client"}]
    monkeypatch.setattr(provision, "load", lambda project: {"participants": people})
    assert provision.site_names() == ["site-2"]
    monkeypatch.setattr(provision, "load", lambda project: {"participants": people[:1]})
    with pytest.raises(UsageError, match="names no participant of type client"):
        provision.site_names()


def test_a_site_with_data_elsewhere_gets_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(site_files, "ROOT", tmp_path)
    given: dict[str, Any] = {
        "site-1": {},
        "site-2": {"data": "/srv/patients"},
        "site-3": {"data": {"folder": "data/site-3", "group": 7}},
        "site-4": {"data": {"images": "/srv/images"}},
    }
    people = [{"name": name, "type": "client", **more} for name, more in given.items()]
    monkeypatch.setattr(provision, "load", lambda project: {"participants": people})
    assert data.sites_without_data() == ["site-1", "site-3"]
    assert "site-2, site-4: data elsewhere" in capsys.readouterr().err
    del people[2], people[0]
    with pytest.raises(UsageError, match="Each site has data elsewhere"):
        data.sites_without_data()


def test_a_site_on_another_machine_gets_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "DATA", tmp_path / "data")
    monkeypatch.setattr(site_files, "ROOT", tmp_path)
    away = {"name": "hospital-c", "type": "client", "elsewhere": True}
    people = [{"name": "site-1", "type": "client"}, away]
    monkeypatch.setattr(provision, "load", lambda project: {"participants": people})
    assert data.sites_without_data() == ["site-1"]
    assert "hospital-c: on another machine" in capsys.readouterr().err
    del people[0]
    with pytest.raises(UsageError, match="Each site has data elsewhere"):
        data.sites_without_data()
