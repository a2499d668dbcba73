"""Data sets are read as their formats say, split without overlap, and refused with a reason when they are not right."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from steadynorm.errors import DataError
from steadynorm.records import Cell
from steadynorm.study.data import ImageData, Part, load
from steadynorm.study.data.cifar import CLASSES
from steadynorm.study.data.images import hold_out
from steadynorm.study.tools import Tools

SHARED = Path(__file__).parents[3] / "shared" / "data"
RNG = np.random.default_rng(0)
NAMES: tuple[str, ...] = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def mnist_files(tmp_path: Path) -> dict[str, bytes]:
    """20 training and 5 test images in IDX form, written gzipped to `tmp_path`."""
    arrays = [
        RNG.integers(256, size=(20, 28, 28)),
        np.arange(20) % 10,
        RNG.integers(256, size=(5, 28, 28)),
        np.arange(5),
    ]
    files = dict(zip(NAMES, map(idx, arrays), strict=True))
    for name, content in files.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return files


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reaches the network or the user's cache."""
    import pooch

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache / name)
    monkeypatch.setattr("pooch.core.stream_download", refuse)


def test_digits() -> None:
    data = load("digits")
    assert data.examples == {"train": 1295, "validation": 143, "test": 359}
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.train.images.dtype == torch.uint8
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)
    every = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert torch.bincount(every).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.sha256 == load("digits").sha256


def test_digits_look_like_their_source() -> None:
    """Read near the centres of the 8x8 cells, the closest image is the source's, with the source's label."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    data = load("digits")
    images = torch.cat([data.train.images, data.validation.images, data.test.images])[:, 0].float() * (16 / 255)
    labels = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    centres = (3.5 * torch.arange(8) + 1.25).round().long()
    cells = images[:, centres][:, :, centres].flatten(1)
    for image, target in zip(torch.from_numpy(pixels[:50]), targets[:50], strict=True):
        distances, order = (cells - image).abs().mean(1).sort()
        assert distances[0] < 0.6 * distances[1]
        assert labels[order[0]] == target


def test_several_data_sets_in_one_folder(tmp_path: Path, mnist_files: dict[str, bytes]) -> None:
    """A folder of the data set's own name goes before files that lie beside it, which may be another's."""
    (tmp_path / "fashion-mnist").mkdir()
    for file, content in mnist_files.items():
        (tmp_path / "fashion-mnist" / file).write_bytes(content)
    for file in (NAMES[1], NAMES[3]):  # other labels
        (tmp_path / f"{file}.gz").unlink()
        content = mnist_files[file]
        (tmp_path / file).write_bytes(content[:8] + bytes(9 - label for label in content[8:]))
    own, beside = load("fashion-mnist", tmp_path), load("mnist", tmp_path)
    assert torch.equal(own.train.images, beside.train.images)
    assert torch.equal(own.train.labels, 9 - beside.train.labels)


def test_a_few_images_are_of_all_classes_also_where_files_are_sorted() -> None:
    images = torch.arange(90, dtype=torch.uint8).reshape(90, 1, 1, 1)
    every = Part(images, torch.arange(90) // 9)
    few = ImageData("sorted", "sorted", every, every, every).at_most(30)
    assert few.examples == {"train": 30, "validation": 10, "test": 30}
    assert few.test.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert few.test.images.flatten().tolist() == list(range(0, 90, 3))
    assert few.validation.labels.tolist() == list(range(10))
    assert few.at_most(1000).examples == few.examples


def test_a_run_gets_as_many_images_as_its_settings_say() -> None:
    some = Tools(Cell("c", {}, 0, {"data": "digits", "images": 100})).data()
    assert some.examples == {"train": 100, "validation": 33, "test": 100}
    assert Tools(Cell("c", {}, 0, {"data": "digits"})).data().examples["train"] > 1000


def test_hold_out_is_a_partition() -> None:
    every = Part(torch.arange(103).view(-1, 1, 1, 1).to(torch.uint8), torch.arange(103))
    kept, held = hold_out(every, 10)
    assert len(held.labels) == 10
    assert sorted([*kept.labels.tolist(), *held.labels.tolist()]) == list(range(103))
    assert torch.equal(kept.images.flatten().long(), kept.labels)
    assert torch.equal(held.labels, hold_out(every, 10)[1].labels)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files(tmp_path: Path, mnist_files: dict[str, bytes], name: str, gzipped: bool) -> None:
    if not gzipped:
        for file, content in mnist_files.items():
            (tmp_path / f"{file}.gz").unlink()
            (tmp_path / file).write_bytes(content)
    data = load(name, tmp_path)
    assert data.examples == {"train": 18, "validation": 2, "test": 5}
    assert data.test.images.numpy().tobytes() == mnist_files[NAMES[2]][16:]
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (0, lambda content: content[:-1], "is truncated: expected 15696 bytes for shape .* got 15695"),
        (
            0,
            lambda content: content[:6],
            "is truncated: expected at least 16 bytes, got 6",
        ),
        (0, lambda content: b"\0\0\x08\x01" + content[4:], "magic number 0x00000803, got 0x00000801"),
        (1, lambda content: b"hello", "magic number 0x00000801, got 0x68656c6c"),
        (1, lambda content: b"", "magic number 0x00000801, got 0x0"),
        (3, lambda content: idx(np.arange(4)), "has 5 images, but .* has 4 labels"),
        (3, lambda content: idx(np.arange(5) + 7), "expected labels 0 to 9, got 11"),
    ],
    ids=["last byte", "header", "labels as images", "text", "nothing", "count", "labels"],
)
def test_wrong_idx_files_are_named(
    tmp_path: Path, mnist_files: dict[str, bytes], file: int, change: Callable[[bytes], bytes], message: str
) -> None:
    (tmp_path / f"{NAMES[file]}.gz").write_bytes(gzip.compress(change(mnist_files[NAMES[file]])))
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", tmp_path)
    assert NAMES[file] in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 5, 5), "expected square images of at least 18x18, .* got 5x5"),
        ((20, 28, 20), "expected square images .* got 28x20"),
        ((20, 32, 32), "got 32x32 and 28x28"),
        ((0, 28, 28), "expected images in every part, found none for train and validation"),
        ((5, 28, 28), "found none for validation"),
    ],
)
def test_images_no_network_can_learn_from(
    tmp_path: Path, mnist_files: dict[str, bytes], shape: tuple[int, ...], message: str
) -> None:
    for name, array in ((NAMES[0], np.zeros(shape)), (NAMES[1], np.zeros(shape[0]))):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


def test_truncated_gzip(tmp_path: Path, mnist_files: dict[str, bytes]) -> None:
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is damaged or truncated"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_files_are_named_with_the_places_looked_at(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"could not be fetched \(ConnectionError\).*--data-dir") as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert ("cifar-10-binary.tar.gz" if name == "cifar10" else "t10k-labels-idx1-ubyte.gz") in str(caught.value)


def test_a_fetched_file_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(url: str, path: Path, *_: object, **__: object) -> None:
        raise ValueError(f"MD5 hash of downloaded file ({path}) does not match")

    monkeypatch.setattr("pooch.core.stream_download", wrong)
    with pytest.raises(DataError, match=r"could not be fetched \(ValueError\)"):
        load("mnist", tmp_path)


def picture(value: int, size: int = 32, kind: str = "png") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "jpeg" if kind == "jpg" else kind)
    return buffer.getvalue()


def cifar_members(kind: str = "png") -> dict[str, bytes]:
    """Two training pictures and one test picture of each class, as bright as their class."""
    return {
        f"cifar10/{part}/{label}/{number:04}.{kind}": picture(20 * index, kind=kind)
        for part, count in (("train", 2), ("test", 1))
        for index, label in enumerate(CLASSES)
        for number in range(count)
    }


def write_tar(path: Path, members: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def check_cifar(data: ImageData) -> None:
    assert data.examples == {"train": 18, "validation": 2, "test": 10}
    for part in (data.train, data.validation, data.test):
        assert part.images.shape[1:] == (3, 32, 32)
        assert (part.images.float().mean((1, 2, 3)) - 20 * part.labels).abs().max() < 2


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("root", ["", "cifar10"])
def test_cifar_folders(tmp_path: Path, kind: str, root: str) -> None:
    for name, content in cifar_members(kind).items():
        path = tmp_path / root / Path(name).relative_to("cifar10")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    data = load("cifar10", tmp_path)
    assert data.title == ("CIFAR-10 (JPEG)" if kind == "jpg" else "CIFAR-10")
    check_cifar(data)


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_cifar_tar(tmp_path: Path, ending: str) -> None:
    write_tar(tmp_path / f"cifar10.tar{ending}", cifar_members(), f"w:{ending[1:]}")
    check_cifar(load("cifar10", tmp_path))


def test_cifar_binary(tmp_path: Path) -> None:
    def batch(labels: range) -> bytes:
        return b"".join(bytes([label]) + bytes([20 * label]) * 3072 for label in labels)

    members = {f"cifar-10-batches-bin/data_batch_{n}.bin": batch(range(10)) for n in (1, 2)}
    members["cifar-10-batches-bin/test_batch.bin"] = batch(range(10))
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members, "w:gz")
    check_cifar(load("cifar10", tmp_path))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cifar10/train/airplane/0.png": b"no picture"}, "cannot read the picture cifar10/train/airplane/0.png"),
        ({"cifar10/train/airplane/0.png": picture(0, size=31)}, "expected pictures of 32x32, got 31x31"),
        ({"cifar10/train/zebra/0.png": picture(0)}, "with CLASS one of airplane, .*, got cifar10/train/zebra/0.png"),
        ({"0.png": picture(0)}, "expected pictures as .train,test./CLASS/PICTURE"),
        ({"cifar10/train/airplane/0.png": picture(0)}, "expected test images, found none"),
        ({"data_batch_1.bin": b"123"}, "expected data_batch_1.bin to hold records of 3073 bytes, got 3 bytes"),
        ({"data_batch_1.bin": bytes([77]) * 3073}, "expected labels 0 to 9, got 77 in data_batch_1.bin"),
        ({"cifar10/train/airplane/0.png": picture(0)[:60] + b"broken"}, "cannot read the picture"),
    ],
)
def test_wrong_cifar_members_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "cifar10.tar", members, "w:")
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)


def test_folders_named_like_pictures_are_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "cifar10.tar", cifar_members(), "w:")
    with tarfile.open(tmp_path / "cifar10.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "cifar10" / "train" / "airplane" / "x.png").mkdir()
    check_cifar(load("cifar10", tmp_path))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz holds pickles, which are never read"):
        load("cifar10", tmp_path)


def test_truncated_tar(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.tar.xz"
    write_tar(path, cifar_members(), "w:xz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="is damaged or truncated"):
        load("cifar10", tmp_path)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs the real MNIST files in ../shared/data/mnist")
def test_real_mnist() -> None:
    data = load("mnist", SHARED / "mnist")
    assert data.examples == {"train": 54000, "validation": 6000, "test": 10000}
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert abs(float(torch.cat([data.train.images, data.validation.images]).float().mean()) / 255 - 0.1307) < 1e-4
