"""Where do the examples come from?

Every reader gives a `Batches`: the whole data set as tensors in memory, images as uint8 of shape
(n, c, h, w), cut into the same batches on every pass. Nothing is augmented and nothing downloaded.

Data with an official test set use it. All other is split by `seed`: in each class a share
`test_share` of the examples, drawn at random, is the test set. Either way the `Normalise` of both
splits is computed from the training images. Draws come from a local generator.
"""

import codecs
import gzip
import hashlib
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]

BATCH_SIZE = 256
TEST_SHARE = 0.2
BLOCK = 256  # examples of `synthetic` that share a generator
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Normalise:
    """Images to zero mean and unit variance: (x - mean) / std in each channel.

    uint8 images (..., c, h, w) become float32 and are scaled to 0..1 before; `mean` and `std` are
    on that scale. Floating-point images keep their dtype and scale.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised images, of the same shape and on the same device."""
        x = images if images.is_floating_point() else images.float() / 255
        mean, std = (x.new_tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches `(transform(inputs[i:j]), targets[i:j])` in order, the same on every pass.

    The last batch may be smaller. `transform` works on the device where the inputs lie. Raises
    `ValueError` for no examples, unequal lengths, a target that is none of `classes`, and a
    `batch_size` below 1.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int = BATCH_SIZE
    transform: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                "inputs and targets must be of one length, "
                f"got {len(self.inputs)} inputs and {len(self.targets)} targets"
            )
        if len(self.inputs) == 0:
            raise ValueError("a data set needs at least one example, got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.classes:
            low, high = int(self.targets.min()), int(self.targets.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"targets must be 0..{len(self.classes) - 1}, one for each of "
                    f"{len(self.classes)} classes, got {low}..{high}"
                )

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.inputs), self.batch_size):
            inputs = self.inputs[start : start + self.batch_size]
            targets = self.targets[start : start + self.batch_size]
            yield (self.transform(inputs) if self.transform else inputs), targets

    @property
    def num_examples(self) -> int:
        """The number of examples, over all batches."""
        return len(self.inputs)

    @property
    def num_classes(self) -> int:
        """The number of named classes; without names, the largest target + 1."""
        return len(self.classes) or int(self.targets.max()) + 1

    def to(self, device: torch.device | str) -> "Batches":
        """The same batches with the tensors on `device`."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> "Batches":
        """Batches of the examples at `indices` (numbers or a boolean mask), in their order."""
        index = torch.as_tensor(indices, device=self.inputs.device)
        index = index if index.numel() else index.long()
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])


def sha256(batches: Batches) -> str:
    """Hexadecimal SHA-256 over dtype, shape and bytes of inputs and targets, as they are stored.

    It depends neither on the batch size nor on device or memory format.
    """
    digest = hashlib.sha256()
    for tensor in (batches.inputs, batches.targets):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(
    spec: str = "sklearn:digits",
    *,
    split: Split = "train",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    test_share: float = TEST_SHARE,
) -> Batches:
    """The data set that a text names.

    `sklearn:digits`, `cifar10:DIR`, `cifar100:DIR`, `mnist:DIR`, `npz:FILE`, `folder:DIR`, or
    `synthetic`, also with settings as in `synthetic:classes=4,size=16`. `seed` and `test_share`
    have no effect where a split is official. Raises `ValueError` for any other text, and what the
    reader of that name raises.
    """
    name, _, rest = spec.partition(":")
    path = Path(rest).expanduser()
    if name in ("cifar10", "cifar100", "mnist", "npz", "folder") and not rest:
        raise ValueError(f"{name} needs a path, as in {name}:/path/to/data, got {spec!r}")
    match name:
        case "sklearn" if rest == "digits":
            return digits(split=split, seed=seed, batch_size=batch_size, test_share=test_share)
        case "cifar10":
            return cifar10(path, split=split, batch_size=batch_size)
        case "cifar100":
            return cifar100(path, split=split, batch_size=batch_size)
        case "mnist":
            return mnist(path, split=split, batch_size=batch_size)
        case "npz":
            return npz(path, split=split, seed=seed, batch_size=batch_size, test_share=test_share)
        case "folder":
            return image_folder(
                path, split=split, seed=seed, batch_size=batch_size, test_share=test_share
            )
        case "synthetic":
            return synthetic(**_settings(rest), split=split, seed=seed, batch_size=batch_size)
    raise ValueError(
        "data must be sklearn:digits, cifar10:DIR, cifar100:DIR, mnist:DIR, npz:FILE, folder:DIR "
        f"or synthetic, got {spec!r}"
    )


def digits(
    *,
    split: Split = "train",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    test_share: float = TEST_SHARE,
) -> Batches:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, split by `seed`.

    The 17 grey levels 0..16 are stored as uint8 0, 15, ..., 240, so that nothing is rounded.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (15 * bunch.images).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    read = _split_by_seed(images, labels, seed, test_share)
    return _batches(read, split, batch_size, _numbers(10))


def cifar10(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """CIFAR-10 (Krizhevsky 2009), from the binary or the python version unpacked in `directory`.

    Pickles of the python version are read by an unpickler that knows arrays and nothing else.
    Raises `FileNotFoundError` naming the files looked for, `ValueError` for a malformed one.
    """
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    files = {"train": batches, "test": ["test_batch"]}
    folders = ("cifar-10-batches-bin", "cifar-10-batches-py")
    read = _cifar(Path(directory), folders, files, b"labels", label_bytes=1, num_classes=10)
    return _batches(read, split, batch_size, CIFAR10_CLASSES)


def cifar100(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """CIFAR-100 with its fine labels; otherwise as `cifar10`."""
    files = {"train": ["train"], "test": ["test"]}
    folders = ("cifar-100-binary", "cifar-100-python")
    read = _cifar(Path(directory), folders, files, b"fine_labels", label_bytes=2, num_classes=100)
    return _batches(read, split, batch_size, _numbers(100))


def mnist(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """MNIST (LeCun et al. 1998), or any data in its four IDX files, plain or gzipped.

    Raises `FileNotFoundError` naming the files looked for, `ValueError` for a malformed one.
    """

    def read(split: Split) -> Arrays:
        prefix = "train" if split == "train" else "t10k"
        arrays = []
        for kind, ndim in (("images", 3), ("labels", 1)):
            names = [f"{prefix}-{kind}{dot}idx{ndim}-ubyte" for dot in "-."]
            names += [f"{name}.gz" for name in names]
            found = _find(Path(directory), ("raw", "MNIST/raw"), [[name] for name in names])
            arrays.append(_idx(found[0], ndim))
        images, labels = arrays
        if len(images) != len(labels):
            raise ValueError(
                f"{directory}: {len(images)} {prefix} images but {len(labels)} labels; "
                "fetch the files again"
            )
        return images[:, None], labels.astype(np.int64)

    return _batches(read, split, batch_size, _numbers(10))


def npz(
    path: str | Path,
    *,
    split: Split = "train",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    test_share: float = TEST_SHARE,
) -> Batches:
    """Arrays of an npz file: `x_train, y_train, x_test, y_test`, or `inputs, targets` to be split.

    uint8 inputs are images (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels and are
    normalised; floating-point inputs, of any shape, are taken as they are. Integer targets become
    int64. Raises `ValueError` for a malformed file, other names, and arrays of Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a .npz archive of plain arrays, found {error}; "
            "write one with numpy.savez, without Python objects"
        ) from error
    official = {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys()
    if not official and not {"inputs", "targets"} <= arrays.keys():
        raise ValueError(
            f"{path}: expected arrays x_train, y_train, x_test, y_test or inputs, targets, "
            f"found {', '.join(sorted(arrays)) or 'none'}; rename them"
        )

    def take(inputs: str, targets: str) -> Arrays:
        x = _as_images(arrays[inputs], f"{path}: {inputs}")
        y = _as_targets(arrays[targets], f"{path}: {targets}")
        if len(x) != len(y):
            raise ValueError(
                f"{path}: {len(x)} {inputs} but {len(y)} {targets}; make them of one length"
            )
        return x, y

    if official:
        return _batches(lambda split: take(f"x_{split}", f"y_{split}"), split, batch_size)
    read = _split_by_seed(*take("inputs", "targets"), seed, test_share)
    return _batches(read, split, batch_size)


def image_folder(
    directory: str | Path,
    *,
    split: Split = "train",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    test_share: float = TEST_SHARE,
) -> Batches:
    """One subfolder of images per class, in `directory` or in its `train` and `test` folders.

    Classes are the sorted names of the subfolders, files are taken in sorted order, and files
    without the suffix of an image are left aside. Images must be of one size; they become grey
    (c = 1) if all are, else RGB. Raises `ValueError` for anything else.
    """
    root = Path(directory)
    official = (root / "train").is_dir() and (root / "test").is_dir()
    roots = [root / "train", root / "test"] if official else [root]
    names = [sorted(path.name for path in _visible(r) if path.is_dir()) for r in roots]
    if len(names[0]) < 2 or names[0] != names[-1]:
        raise ValueError(
            f"{root}: expected a subfolder for each of two or more classes, the same in train and "
            f"test, found {' and '.join(', '.join(n) or 'none' for n in names)}"
        )
    paths, labels, of_test = [], [], []
    for part, folder in enumerate(roots):
        for label, name in enumerate(names[0]):
            files = [p for p in _visible(folder / name) if p.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                raise ValueError(f"{folder / name}: expected images, found none; remove the folder")
            paths += files
            labels += [label] * len(files)
            of_test += [part == 1] * len(files)
    images, targets = _read_images(paths), np.array(labels)
    if not official:
        read = _split_by_seed(images, targets, seed, test_share)
    else:
        read = _split_by_mask(images, targets, np.array(of_test))
    return _batches(read, split, batch_size, tuple(names[0]))


def synthetic(
    num_examples: int = 10_000,
    *,
    classes: int = 10,
    size: int = 32,
    difficulty: float = 0.5,
    split: Split = "train",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Batches:
    """Made-up colour images (n, 3, size, size) that no linear model can tell apart.

    A striped flower lies on a striped background. The class is the number of its petals together
    with the direction of its stripes; position, size, rotation, phase and all colours are random,
    so that an image and its negative are equally likely in every class. `difficulty` in 0..1 is
    the strength of the background's stripes, of the pixel noise, and of the spread of directions
    within a class.

    An example depends on its number, `seed`, `split` and the settings, not on `num_examples`; the
    transform is that of the first 1,024 training images.
    """
    if not (num_examples >= 1 and classes >= 2 and size >= 8 and 0 <= difficulty <= 1):
        raise ValueError(
            "expected num_examples >= 1, classes >= 2, size >= 8 and difficulty in 0..1, got "
            f"{num_examples}, {classes}, {size} and {difficulty}"
        )

    def read(split: Split, num: int) -> Arrays:
        blocks = [
            _flowers(np.random.default_rng([seed, split == "test", b]), classes, size, difficulty)
            for b in range(math.ceil(num / BLOCK))
        ]
        images, labels = (np.concatenate(arrays)[:num] for arrays in zip(*blocks, strict=True))
        return images, labels

    images, labels = read(_checked(split), num_examples)
    transform = _statistics(read("train", 1024)[0])
    return Batches(
        torch.tensor(images), torch.tensor(labels), batch_size, transform, _numbers(classes)
    )


def _flowers(rng: np.random.Generator, classes: int, size: int, difficulty: float) -> Arrays:
    """One block of `synthetic`. Lengths are in units of the image, intensities in -1..1."""
    num_shapes = min(5, round(classes**0.5))
    num_textures = math.ceil(classes / num_shapes)
    labels = rng.integers(classes, size=BLOCK)
    petals, texture = 2 + labels % num_shapes, labels // num_shapes

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (BLOCK, *shape))[..., None, None]

    def stripes(angle: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        along = x * np.cos(angle) + y * np.sin(angle)
        return np.cos(2 * np.pi * (frequency * along + uniform(0, 1)))[:, None]

    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size - 0.5])
    dx, dy = x - uniform(-0.15, 0.15), y - uniform(-0.15, 0.15)
    turn = petals[:, None, None] * (np.arctan2(dy, dx) + uniform(-np.pi, np.pi))
    edge = uniform(0.25, 0.35) * (1 + 0.35 * np.cos(turn))
    inside = np.clip((edge - np.hypot(dx, dy)) * size + 0.5, 0, 1)[:, None]

    spread = difficulty * uniform(-0.3, 0.3)
    angle = np.pi * (texture[:, None, None] + spread) / num_textures
    flower = uniform(-0.4, 0.4, 3) + uniform(-0.6, 0.6, 3) * stripes(angle, uniform(5, 6))
    behind = difficulty * stripes(uniform(0, np.pi), uniform(2, 8))
    behind = uniform(-0.4, 0.4, 3) + uniform(-0.6, 0.6, 3) * behind
    noise = 0.4 * difficulty * rng.standard_normal((BLOCK, 3, size, size))
    image = np.clip(behind + inside * (flower - behind) + noise, -1, 1)
    return np.rint(127.5 * (1 + image)).astype(np.uint8), labels


def _batches(
    read: Callable[[Split], Arrays],
    split: Split,
    batch_size: int,
    classes: tuple[str, ...] = (),
) -> Batches:
    """The examples of a split, with uint8 images normalised as the training images want it."""
    inputs, targets = read(_checked(split))
    transform = None
    if inputs.dtype == np.uint8:
        transform = _statistics(inputs if split == "train" else read("train")[0])
    return Batches(torch.tensor(inputs), torch.tensor(targets), batch_size, transform, classes)


def _statistics(images: np.ndarray) -> Normalise:
    """Mean and standard deviation of each channel, exact; 1 for that of a constant channel."""
    levels, mean, std = np.arange(256) / 255, [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        mean.append(float(share @ levels))
        std.append(float(share @ (levels - mean[-1]) ** 2) ** 0.5 or 1.0)
    return Normalise(tuple(mean), tuple(std))


def _split_by_seed(
    inputs: np.ndarray, targets: np.ndarray, seed: int, test_share: float
) -> Callable[[Split], Arrays]:
    """The nearest number of examples to `test_share` in each class, drawn at random, is for test.

    Targets that are no integers count as one class.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    rng = np.random.default_rng(seed)
    of_test = np.zeros(len(targets), bool)
    label = targets if targets.dtype.kind == "i" else np.zeros(len(targets), int)
    for value in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == value))
        of_test[members[: round(test_share * len(members))]] = True
    return _split_by_mask(inputs, targets, of_test)


def _split_by_mask(
    inputs: np.ndarray, targets: np.ndarray, of_test: np.ndarray
) -> Callable[[Split], Arrays]:
    def read(split: Split) -> Arrays:
        mask = of_test if split == "test" else ~of_test
        return inputs[mask], targets[mask]

    return read


def _checked(split: Split) -> Split:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return split


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _settings(text: str) -> dict[str, Any]:
    """Arguments of `synthetic` from text such as `classes=4,difficulty=0.2`."""
    kinds = {"num_examples": int, "classes": int, "size": int, "difficulty": float}
    settings = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        try:
            settings[name] = kinds[name](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"synthetic takes {', '.join(kinds)}, as in synthetic:classes=4,size=16, "
                f"got {item!r}"
            ) from None
    return settings


def _find(directory: Path, folders: Sequence[str], groups: Sequence[Sequence[str]]) -> list[Path]:
    """The first group of names of which all are files, in `directory` or one of its `folders`."""
    for folder in ("", *folders):
        for names in groups:
            paths = [directory / folder / name for name in names]
            if all(path.is_file() for path in paths):
                return paths
    found = [p.name for p in _visible(directory)] if directory.is_dir() else ["no such folder"]
    raise FileNotFoundError(
        f"{directory}: expected {' or '.join(', '.join(names) for names in groups)}, here or in "
        f"{', '.join(folders)}; found {', '.join(found[:10]) or 'an empty folder'}"
    )


def _visible(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _cifar(
    directory: Path,
    folders: Sequence[str],
    files: dict[str, list[str]],
    key: bytes,
    *,
    label_bytes: int,
    num_classes: int,
) -> Callable[[Split], Arrays]:
    """Readers of both versions; the label is the last of `label_bytes`, or lies under `key`."""

    def read_binary(path: Path) -> Arrays:
        record = label_bytes + 3072
        data = np.fromfile(path, np.uint8)
        if data.size == 0 or data.size % record:
            raise ValueError(
                f"{path}: expected records of {record} bytes, found {data.size} bytes in all; "
                "fetch the file again"
            )
        data = data.reshape(-1, record)
        return data[:, label_bytes:], data[:, label_bytes - 1]

    def read_pickle(path: Path) -> Arrays:
        try:
            with path.open("rb") as file:
                content = _ArrayUnpickler(file, encoding="bytes").load()
            images, labels = np.asarray(content[b"data"]), np.asarray(content[key])
        except Exception as error:  # a malformed pickle can raise nearly anything
            raise ValueError(
                f"{path}: expected a pickled dict with b'data' and {key!r}, found "
                f"{type(error).__name__}: {error}; fetch the file again"
            ) from error
        if images.dtype != np.uint8 or images.shape != (len(labels), 3072) or not len(labels):
            raise ValueError(
                f"{path}: expected uint8 images ({len(labels)}, 3072), one for each label, found "
                f"{images.dtype} {images.shape}; fetch the file again"
            )
        return images, labels

    def read(split: Split) -> Arrays:
        names = files[split]
        paths = _find(directory, folders, [[f"{name}.bin" for name in names], names])
        parts = [read_binary(p) if p.suffix == ".bin" else read_pickle(p) for p in paths]
        for path, (_, labels) in zip(paths, parts, strict=True):
            if labels.min() < 0 or labels.max() >= num_classes:
                raise ValueError(
                    f"{path}: expected labels 0..{num_classes - 1}, found "
                    f"{labels.min()}..{labels.max()}; is it this data set?"
                )
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)

    return read


def _dtype(kind: Any, align: int = 0, copy: int = 0) -> np.dtype:
    """`numpy.dtype` with the flags as old pickles have them, as integers."""
    return np.dtype(kind, align=bool(align), copy=bool(copy))


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and builtin containers; any other global is refused, not looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"a call of {module}.{name}, which data has no need of")
        return _KNOWN[module, name]


def _idx(path: Path, ndim: int) -> np.ndarray:
    """The unsigned bytes of an IDX file of `ndim` dimensions, plain or gzipped."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a gzip file, found {error}; fetch the file again"
            ) from error
    start = 4 + 4 * ndim
    magic = bytes([0, 0, 8, ndim])
    if len(data) < start or data[:4] != magic:
        raise ValueError(
            f"{path}: expected an IDX header that begins {magic.hex(' ')} (unsigned bytes, {ndim} "
            f"dimensions), found {data[:4].hex(' ') or 'nothing'}; fetch the file again"
        )
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if math.prod(shape) != len(data) - start:
        raise ValueError(
            f"{path}: expected {math.prod(shape)} bytes for the shape {shape} of its header, found "
            f"{len(data) - start}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _as_images(array: np.ndarray, name: str) -> np.ndarray:
    """Arrays of an npz file as inputs: images as uint8 (n, c, h, w), floats as they are."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, found NaN or infinity; remove them")
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.uint8 and array.ndim == 3:
        return array[:, None]
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    raise ValueError(
        f"{name}: expected uint8 images (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 "
        f"channels, or floating-point numbers, found {array.dtype} {array.shape}; convert them"
    )


def _as_targets(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "iub" and array.ndim == 1:
        return array.astype(np.int64)
    raise ValueError(
        f"{name}: expected class numbers (n,) or floating-point numbers, found {array.dtype} "
        f"{array.shape}; convert them"
    )


def _read_images(paths: Sequence[Path]) -> np.ndarray:
    """All images as one uint8 array (n, c, h, w)."""
    from PIL import Image

    def opened(path: Path, mode: str | None = None) -> Image.Image:
        try:
            with Image.open(path) as image:
                return image.convert(mode) if mode else image
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{path}: expected an image, found {error}; remove or replace it"
            ) from error

    heads = [opened(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if head.size != heads[0].size:
            raise ValueError(
                f"{path}: expected {'{} x {}'.format(*heads[0].size)} pixels as in {paths[0]}, found "
                f"{'{} x {}'.format(*head.size)}; bring all images to one size"
            )
        if head.mode[0] in "IF":
            raise ValueError(
                f"{path}: expected 8 bits a channel, found mode {head.mode}; convert it"
            )
    mode = "L" if all(head.mode in ("1", "L") for head in heads) else "RGB"
    images = np.stack([np.asarray(opened(path, mode)) for path in paths])
    return images[:, None] if mode == "L" else images.transpose(0, 3, 1, 2)
