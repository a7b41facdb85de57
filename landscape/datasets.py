"""Where do the examples come from?

Every reader gives a `Batches`: the whole data set as tensors in memory, images as uint8 of shape
(n, c, h, w), cut into the same batches on every pass. Nothing is augmented and nothing downloaded.

Data with an official test set use it. All other is split by `seed`: in each class a share
`test_share` of the examples, drawn at random, is the test set. Either way the `Normalise` of both
splits is computed from the training images. Draws come from a local generator.
"""

import codecs
import gzip
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]  # inputs and targets

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
        """The number of named classes; without names, the largest target + 1.

        Raises `ValueError` for targets that are no integers.
        """
        if self.targets.is_floating_point():
            raise ValueError(f"targets of dtype {self.targets.dtype} have no classes")
        return len(self.classes) or int(self.targets.max()) + 1

    def to(self, device: torch.device | str) -> "Batches":
        """The same batches with the tensors on `device`."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> "Batches":
        """Batches of the examples at `indices` (numbers or a boolean mask), in their order."""
        index = torch.as_tensor(indices, device=self.inputs.device)
        index = index if index.numel() else index.long()
        return replace(self, inputs=self.inputs[index], targets=self.targets[index])


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
    official: dict[str, Any] = {"split": split, "batch_size": batch_size}
    seeded = official | {"seed": seed, "test_share": test_share}
    match name:
        case "sklearn" if rest == "digits":
            return digits(**seeded)
        case "cifar10" if rest:
            return cifar10(rest, **official)
        case "cifar100" if rest:
            return cifar100(rest, **official)
        case "mnist" if rest:
            return mnist(rest, **official)
        case "npz" if rest:
            return npz(rest, **seeded)
        case "folder" if rest:
            return image_folder(rest, **seeded)
        case "synthetic":
            return synthetic(**_settings(rest), seed=seed, **official)
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
    parts = _split_by_seed(images, bunch.target.astype(np.int64), seed, test_share)
    return _batches(parts, split, batch_size, _numbers(10))


def cifar10(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """CIFAR-10 (Krizhevsky 2009), the binary or the python version, unpacked in `directory`.

    Pickles of the python version are read by an unpickler that knows arrays and nothing else.
    Raises `FileNotFoundError` naming the files looked for, `ValueError` for a malformed one.
    """
    files = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
    folders = ("cifar-10-batches-bin", "cifar-10-batches-py")
    parts = {part: _cifar(directory, folders, names, b"labels") for part, names in files.items()}
    return _batches(parts, split, batch_size, CIFAR10_CLASSES)


def cifar100(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """CIFAR-100 with its fine labels; otherwise as `cifar10`."""
    folders = ("cifar-100-binary", "cifar-100-python")
    parts = {p: _cifar(directory, folders, [p], b"fine_labels") for p in ("train", "test")}
    return _batches(parts, split, batch_size, _numbers(100))


def mnist(
    directory: str | Path, *, split: Split = "train", batch_size: int = BATCH_SIZE
) -> Batches:
    """MNIST (LeCun et al. 1998), or other data in its four IDX files, plain or gzipped.

    Raises `FileNotFoundError` naming the files looked for, `ValueError` for a malformed one.
    """

    def read(prefix: str, kind: str, ndim: int) -> np.ndarray:
        names = [f"{prefix}-{kind}{dot}idx{ndim}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
        return _idx(_find(directory, ("raw", "MNIST/raw"), [[name] for name in names])[0], ndim)

    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = read(prefix, "images", 3), read(prefix, "labels", 1)
        if len(images) != len(labels):
            lengths = f"{len(images)} and {len(labels)}"
            raise _malformed(directory, f"as many {prefix} images as labels", lengths)
        parts[part] = images[:, None], labels.astype(np.int64)
    return _batches(parts, split, batch_size, _numbers(10))


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
    path = Path(path).expanduser()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, TypeError, BadZipFile, zlib.error) as error:
        advice = "write it with numpy.savez, without Python objects"
        raise _malformed(path, "an archive of plain arrays", str(error), advice) from error
    official = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    names = {name for pair in official.values() for name in pair}
    if not names <= arrays.keys() and not {"inputs", "targets"} <= arrays.keys():
        found = ", ".join(sorted(arrays)) or "none"
        wanted = "arrays x_train, y_train, x_test, y_test or inputs, targets"
        raise _malformed(path, wanted, found, "rename the arrays")

    def take(inputs: str, targets: str) -> Arrays:
        x = _as_images(arrays[inputs], f"{path}: {inputs}")
        y = _as_targets(arrays[targets], f"{path}: {targets}")
        if len(x) != len(y):
            found = f"{len(x)} and {len(y)}"
            raise _malformed(path, f"as many {inputs} as {targets}", found, "write both again")
        return x, y

    if names <= arrays.keys():
        parts = {part: take(*pair) for part, pair in official.items()}
    else:
        parts = _split_by_seed(*take("inputs", "targets"), seed, test_share)
    return _batches(parts, split, batch_size)


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
    root = Path(directory).expanduser()
    official = (root / "train").is_dir() and (root / "test").is_dir()
    roots = [root / "train", root / "test"] if official else [root]
    classes = [[path.name for path in _visible(r) if path.is_dir()] for r in roots]
    if len(classes[0]) < 2 or classes[0] != classes[-1]:
        wanted = "a subfolder for each of two or more classes, the same in train and test"
        found = " and ".join(", ".join(names) or "none" for names in classes)
        raise _malformed(root, wanted, found, "put the images of each class in a folder")
    folders = [r / name for r in roots for name in classes[0]]
    files = [[p for p in _visible(f) if p.suffix.lower() in IMAGE_SUFFIXES] for f in folders]
    for folder, paths in zip(folders, files, strict=True):
        if not paths:
            raise _malformed(folder, "images", "none", "fill or remove the folder")
    images = _read_images([path for paths in files for path in paths])
    number = np.repeat(np.arange(len(folders)), [len(paths) for paths in files])
    labels, of_test = number % len(classes[0]), number >= len(classes[0])
    parts = (
        {"train": (images[~of_test], labels[~of_test]), "test": (images[of_test], labels[of_test])}
        if official
        else _split_by_seed(images, labels, seed, test_share)
    )
    return _batches(parts, split, batch_size, tuple(classes[0]))


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
    """Made-up colour images (n, 3, size, size) that a linear model cannot tell apart.

    A striped flower lies on a striped background. The class is the number of its petals together
    with the direction of its stripes; position, size, phase, frequency and all colours are random,
    and an image and its negative are equally likely in every class, so that neither any pixel nor
    the mean colour tells it. `difficulty` in 0..1 is the strength of the background's stripes and
    of the noise, the range of rotations, and the spread of directions within a class.

    With the defaults, logistic regression on the pixels stays below twice chance on new images.

    An example depends on its number, `seed`, `split` and the settings, not on `num_examples`; the
    transform is that of the first 1,024 training images. Raises `ValueError` for settings out of
    range.
    """
    _check_split(split)
    if not (num_examples >= 1 and classes >= 2 and size >= 16 and 0 <= difficulty <= 1):
        raise ValueError(
            "expected num_examples >= 1, classes >= 2, size >= 16 and difficulty in 0..1, got "
            f"{num_examples}, {classes}, {size} and {difficulty}"
        )

    def draw(split: Split, num: int) -> Arrays:
        blocks = [
            _flowers(
                np.random.default_rng([seed, split == "test", block]), classes, size, difficulty
            )
            for block in range(math.ceil(num / BLOCK))
        ]
        images, labels = (np.concatenate(arrays)[:num] for arrays in zip(*blocks, strict=True))
        return images, labels

    images, labels = (torch.tensor(array) for array in draw(split, num_examples))
    return Batches(
        images, labels, batch_size, _statistics(draw("train", 1024)[0]), _numbers(classes)
    )


def _flowers(rng: np.random.Generator, classes: int, size: int, difficulty: float) -> Arrays:
    """One block of `synthetic`. Lengths are in units of the image, intensities in -1..1."""
    num_shapes = min(5, round(classes**0.5))
    num_textures = math.ceil(classes / num_shapes)
    labels = rng.integers(classes, size=BLOCK)
    petals, texture = 2 + labels // num_textures, labels % num_textures

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (BLOCK, *shape))[..., None, None]

    def stripes(angle: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        along = x * np.cos(angle) + y * np.sin(angle)
        return np.cos(2 * np.pi * (frequency * along + uniform(0, 1)))[:, None]

    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size - 0.5])
    dx, dy = x - uniform(-0.2, 0.2), y - uniform(-0.2, 0.2)
    turn = petals[:, None, None] * np.arctan2(dy, dx) + difficulty * uniform(-np.pi, np.pi)
    edge = uniform(0.2, 0.3) * (1 + 0.35 * np.cos(turn))
    inside = np.clip((edge - np.hypot(dx, dy)) * size + 0.5, 0, 1)[:, None]

    spread = difficulty * uniform(-0.3, 0.3)
    angle = np.pi * (texture[:, None, None] + spread) / num_textures
    contrast = uniform(0.3, 0.6, 3) * np.sign(uniform(-1, 1, 3))
    flower = uniform(-0.4, 0.4, 3) + contrast * stripes(angle, uniform(4, 8))
    behind = difficulty * stripes(uniform(0, np.pi), uniform(2, 8))
    behind = uniform(-0.4, 0.4, 3) + uniform(-0.6, 0.6, 3) * behind
    noise = 0.3 * difficulty * rng.standard_normal((BLOCK, 3, size, size))
    image = np.clip(behind + inside * (flower - behind) + noise, -1, 1)
    return np.rint(127.5 * (1 + image)).astype(np.uint8), labels


def _batches(
    parts: Mapping[str, Arrays], split: Split, batch_size: int, classes: tuple[str, ...] = ()
) -> Batches:
    """One of the parts, with uint8 images normalised as the training images want it."""
    _check_split(split)
    inputs, targets = (torch.tensor(array) for array in parts[split])
    transform = _statistics(parts["train"][0]) if inputs.dtype == torch.uint8 else None
    return Batches(inputs, targets, batch_size, transform, classes)


def _check_split(split: Split) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


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
) -> dict[str, Arrays]:
    """For test, of each class the number of examples nearest to `test_share`, drawn at random.

    Targets that are no integers count as one class.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    rng = np.random.default_rng(seed)
    of_test = np.zeros(len(targets), bool)
    labels = targets if targets.dtype.kind == "i" else np.zeros(len(targets), int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        of_test[members[: round(test_share * len(members))]] = True
    return {
        "train": (inputs[~of_test], targets[~of_test]),
        "test": (inputs[of_test], targets[of_test]),
    }


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
            names = ", ".join(kinds)
            raise ValueError(
                f"synthetic takes {names}, as in synthetic:classes=4,size=16, got {item!r}"
            ) from None
    return settings


def _malformed(
    path: object, expected: str, found: str, advice: str = "fetch the files again"
) -> ValueError:
    return ValueError(f"{path}: expected {expected}, found {found}; {advice}")


def _find(
    directory: str | Path, folders: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[Path]:
    """The first group of names of which all are files, in `directory` or one of its `folders`."""
    root = Path(directory).expanduser()
    for folder in (root, *(root / name for name in folders)):
        for names in groups:
            paths = [folder / name for name in names]
            if all(path.is_file() for path in paths):
                return paths
    found = [path.name for path in _visible(root)] if root.is_dir() else ["no such folder"]
    raise FileNotFoundError(
        f"{root}: expected {' or '.join(', '.join(names) for names in groups)}, here or in "
        f"{', '.join(folders)}; found {', '.join(found[:10]) or 'an empty folder'}"
    )


def _visible(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _cifar(
    directory: str | Path, folders: Sequence[str], names: Sequence[str], key: bytes
) -> Arrays:
    """One split of CIFAR; `key` tells the kind of the labels, and so CIFAR-100 from CIFAR-10."""
    num_classes, label_bytes = (100, 2) if key == b"fine_labels" else (10, 1)
    paths = _find(directory, folders, [[f"{name}.bin" for name in names], names])
    parts = []
    for path in paths:
        binary = path.suffix == ".bin"
        images, labels = _cifar_binary(path, label_bytes) if binary else _cifar_pickle(path, key)
        if labels.min() < 0 or labels.max() >= num_classes:
            found = f"{labels.min()}..{labels.max()}"
            raise _malformed(path, f"labels 0..{num_classes - 1}", found)
        parts.append((images.reshape(-1, 3, 32, 32), labels.astype(np.int64)))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return images, labels


def _cifar_binary(path: Path, label_bytes: int) -> Arrays:
    """Records of labels, of which the last counts, and 3,072 bytes of an image."""
    record, data = label_bytes + 3072, np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % record:
        raise _malformed(path, f"records of {record} bytes", f"{data.size} bytes")
    data = data.reshape(-1, record)
    return data[:, label_bytes:], data[:, label_bytes - 1]


def _cifar_pickle(path: Path, key: bytes) -> Arrays:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        images = np.asarray(content[b"data"])
        labels = np.asarray(content[key], np.int64).reshape(-1)
    except Exception as error:  # a malformed pickle can raise nearly anything
        wanted = f"a pickled dict with b'data' and {key!r}"
        raise _malformed(path, wanted, f"{type(error).__name__}: {error}") from error
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072) or len(labels) == 0:
        wanted = f"uint8 images ({len(labels)}, 3072), one for each label"
        raise _malformed(path, wanted, f"{images.dtype} {images.shape}")
    return images, labels


def _dtype(kind: Any, align: int = 0, copy: int = 0) -> np.dtype:
    """`numpy.dtype` with its flags as old pickles have them, as integers."""
    return np.dtype(kind, align=bool(align), copy=bool(copy))


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
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
            raise _malformed(path, "a gzip file", str(error)) from error
    start, magic = 4 + 4 * ndim, bytes([0, 0, 8, ndim])
    if len(data) < start or data[:4] != magic:
        wanted = f"an IDX header of unsigned bytes in {ndim} dimensions, {magic.hex(' ')}"
        raise _malformed(path, wanted, data[:4].hex(" ") or "nothing")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    if math.prod(shape) != len(data) - start:
        wanted = f"{math.prod(shape)} bytes for the shape {shape} of its header"
        raise _malformed(path, wanted, f"{len(data) - start} bytes")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _as_images(array: np.ndarray, name: str) -> np.ndarray:
    """Inputs from an npz file: images as uint8 (n, c, h, w), floats as they are."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise _malformed(name, "finite numbers", "NaN or infinity", "remove those examples")
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.uint8 and array.ndim == 3:
        return array[:, None]
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    wanted = (
        "uint8 images (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels, or "
        "floating-point numbers"
    )
    raise _malformed(name, wanted, f"{array.dtype} {array.shape}", "convert the array")


def _as_targets(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "iu" and array.size == len(array):
        return array.reshape(-1).astype(np.int64)
    wanted = "integers (n,) or floating-point numbers"
    raise _malformed(name, wanted, f"{array.dtype} {array.shape}", "convert the array")


def _read_images(paths: Sequence[Path]) -> np.ndarray:
    """All images as one uint8 array (n, c, h, w)."""
    from PIL import Image

    def read(path: Path, mode: str | None = None) -> Image.Image:
        try:
            with Image.open(path) as image:
                return image.convert(mode) if mode else image
        except (OSError, SyntaxError, ValueError) as error:
            raise _malformed(path, "an image", str(error), "replace or remove it") from error

    heads = [read(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if head.size != heads[0].size:
            wanted = "{} x {} pixels".format(*heads[0].size) + f" as in {paths[0]}"
            raise _malformed(path, wanted, "{} x {}".format(*head.size), "make all of one size")
        if head.mode[0] in "IF":
            raise _malformed(path, "8 bits a channel", f"mode {head.mode}", "convert it")
    mode = "L" if all(head.mode in ("1", "L") for head in heads) else "RGB"
    images = np.stack([np.asarray(read(path, mode)) for path in paths])
    return images[:, None] if mode == "L" else images.transpose(0, 3, 1, 2)
