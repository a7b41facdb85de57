"""Every format is written here byte by byte and read back; every malformed file says what it is."""

import gzip
import hashlib
import os
import pickle
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from landscape import datasets, models
from landscape.datasets import Batches, Normalise
from landscape.task import data_sha256


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def numbered(n, batch_size=4, **kwargs):
    return Batches(torch.arange(2.0 * n).reshape(n, 2), torch.arange(n) % 3, batch_size, **kwargs)


def assert_holds(batches, images, labels):
    assert batches.inputs.dtype == torch.uint8
    assert batches.targets.dtype == torch.int64
    np.testing.assert_array_equal(batches.inputs.numpy(), images)
    np.testing.assert_array_equal(batches.targets.numpy(), labels)


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 99])
def test_iterating_is_slicing_on_every_pass(batch_size):
    batches = numbered(10, batch_size, transform=torch.neg)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches) == -(-10 // batch_size)
        for k, (inputs, targets) in enumerate(passed):
            rows = slice(k * batch_size, (k + 1) * batch_size)
            assert torch.equal(inputs, -batches.inputs[rows])
            assert torch.equal(targets, batches.targets[rows])
    assert batches.num_examples == 10


def test_num_classes_are_the_names_or_the_largest_target():
    assert numbered(10).num_classes == 3
    assert numbered(10, classes=("a", "b", "c", "d")).num_classes == 4
    with pytest.raises(ValueError, match=r"targets of dtype torch.float32 have no classes"):
        _ = Batches(torch.zeros(2, 1), torch.zeros(2)).num_classes


def test_subset_takes_numbers_masks_and_repeats():
    batches = numbered(6, classes=("a", "b", "c"))
    for indices in ([4, 0, 4], np.array([4, 0, 4]), torch.tensor([4, 0, 4])):
        part = batches.subset(indices)
        assert torch.equal(part.inputs, batches.inputs[[4, 0, 4]])
        assert torch.equal(part.targets, batches.targets[[4, 0, 4]])
        assert part.classes == batches.classes
    assert batches.subset(batches.targets == 1).targets.tolist() == [1, 1]
    with pytest.raises(ValueError, match="at least one example"):
        batches.subset([])


def test_to_moves_both_tensors():
    moved = numbered(6, transform=torch.neg).to("meta")
    assert moved.inputs.is_meta
    assert moved.targets.is_meta
    assert moved.transform is torch.neg


@pytest.mark.parametrize(
    ("num_inputs", "targets", "options", "message"),
    [
        (2, [0], {}, "one length, got 2 inputs and 1 targets"),
        (0, [], {}, "at least one example"),
        (1, [0], {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (2, [0, 2], {"classes": ("a", "b")}, r"targets must be 0..1, .* 2 classes, got 0..2"),
        (2, [-1, 0], {"classes": ("a", "b")}, r"got -1..0"),
    ],
)
def test_batches_refuses(num_inputs, targets, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(torch.zeros(num_inputs, 1), torch.tensor(targets), **options)


def test_sha256_is_of_the_stored_bytes_and_the_transform():
    images, labels = torch.tensor(noise(5, 3, 4, 4)), torch.arange(5)
    reference = data_sha256(Batches(images, labels))
    strided = images.contiguous(memory_format=torch.channels_last)
    same = Batches(strided, labels, 2, classes=tuple("abcde"))
    assert data_sha256(same) == reference
    other = images.clone()
    other[4, 2, 3, 3] ^= 1
    changed = [
        Batches(other, labels),
        Batches(images, labels.flip(0)),
        Batches(images, labels.int()),
        Batches(images.reshape(5, 3, 2, 8), labels),
        Batches(images, labels, transform=Normalise((0.5,), (1.0,))),
        Batches(images, labels, transform=Normalise((0.5,), (2.0,))),
    ]
    assert len({reference, *(data_sha256(b) for b in changed)}) == 7


def test_sha256_by_hand():
    batches = Batches(torch.tensor([[1, 2]], dtype=torch.uint8), torch.tensor([3]))
    text = b"torch.uint8 (1, 2)\n\x01\x02torch.int64 (1,)\n\x03" + bytes(7)
    assert data_sha256(batches) == hashlib.sha256(text).hexdigest()


# Normalise and splits -----------------------------------------------------------------------------


def test_normalise_by_hand_on_batches_and_single_images():
    images = torch.tensor(noise(4, 2, 3, 3))
    normalise = Normalise((0.2, 0.6), (0.5, 0.25))
    expected = torch.stack(
        [(images[:, 0] / 255 - 0.2) / 0.5, (images[:, 1] / 255 - 0.6) / 0.25], dim=1
    )
    torch.testing.assert_close(normalise(images), expected)
    torch.testing.assert_close(normalise(images[1]), expected[1])
    torch.testing.assert_close(normalise(images.double() / 255), expected.double())
    assert pickle.loads(pickle.dumps(normalise)) == normalise


@pytest.mark.parametrize("make", [datasets.digits, lambda: datasets.synthetic(1024, size=16)])
def test_training_images_have_mean_0_and_variance_1(make):
    (x, _) = next(iter(replace(make(), batch_size=10**6)))
    x = x.double()
    torch.testing.assert_close(
        x.mean((0, 2, 3)), torch.zeros(x.shape[1]).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(x.var((0, 2, 3), correction=0), torch.ones(x.shape[1]).double())


def test_a_constant_channel_is_only_centred(tmp_path):
    images = np.full((4, 2, 2), 51, np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=[0, 1] * 2, x_test=images, y_test=[0] * 4)
    assert datasets.npz(tmp_path / "a.npz").transform == Normalise((pytest.approx(0.2),), (1.0,))


def test_digits_are_the_originals_split_into_disjoint_complete_halves():
    bunch = load_digits()
    train, test = datasets.digits(), datasets.digits(split="test")
    assert (train.num_examples, test.num_examples) == (1438, 359)
    together = torch.cat([train.inputs, test.inputs]).flatten(1).numpy() / 15
    rows = sorted(map(tuple, np.c_[together, torch.cat([train.targets, test.targets])]))
    assert rows == sorted(map(tuple, np.c_[bunch.data, bunch.target]))
    assert train.transform == test.transform
    assert train.classes == tuple("0123456789")
    share = test.targets.bincount() / torch.tensor(np.bincount(bunch.target))
    assert (share - 0.2).abs().max() < 0.5 / 174  # of the smallest class, half an example


def test_the_split_depends_on_its_seed_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    first = data_sha256(datasets.digits())
    random.seed(2), np.random.seed(2), torch.manual_seed(2)  # noqa: NPY002
    assert data_sha256(datasets.digits()) == first
    assert data_sha256(datasets.digits(seed=1)) != first
    assert abs(datasets.digits(test_share=0.5).num_examples - 898.5) <= 5  # half of each class


def test_loading_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    datasets.digits()
    datasets.synthetic(3, size=16)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before


# load ---------------------------------------------------------------------------------------------


def test_load_is_the_reader_of_that_name(tmp_path):
    assert data_sha256(datasets.load()) == data_sha256(datasets.digits())
    one = datasets.load("sklearn:digits", split="test", seed=3, batch_size=7, test_share=0.5)
    two = datasets.digits(split="test", seed=3, batch_size=7, test_share=0.5)
    assert data_sha256(one) == data_sha256(two)
    assert one.batch_size == 7
    made = datasets.load("synthetic:num_examples=5,classes=3,size=16,difficulty=0.1", seed=2)
    same = datasets.synthetic(5, classes=3, size=16, difficulty=0.1, seed=2)
    assert data_sha256(made) == data_sha256(same)
    images, labels = write_cifar10(tmp_path, "binary")["test"]
    assert_holds(datasets.load(f"cifar10:{tmp_path}", split="test"), images, labels)


@pytest.mark.parametrize("spec", ["imagenet:/data", "cifar10", "npz:", "sklearn:iris", ""])
def test_load_refuses_other_texts(spec):
    with pytest.raises(ValueError, match=f"data must be sklearn:digits, .* got '{spec}'"):
        datasets.load(spec)


@pytest.mark.parametrize("item", ["colour=3", "classes=x", "classes"])
def test_load_refuses_other_settings_of_synthetic(item):
    with pytest.raises(ValueError, match=f"synthetic takes num_examples, .* got '{item}'"):
        datasets.load(f"synthetic:size=16,{item}")


@pytest.mark.parametrize("make", [datasets.digits, datasets.synthetic])
def test_other_splits_are_refused(make):
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        make(split="valid")


def test_test_share_lies_within_0_and_1():
    with pytest.raises(ValueError, match=r"test_share must lie between 0 and 1, got 1"):
        datasets.digits(test_share=1)


# CIFAR --------------------------------------------------------------------------------------------


def write_cifar10(directory, version):
    """Five training files of 3 examples and a test file of 4; returns the arrays of both splits."""
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    parts = []
    for k, name in enumerate(names):
        images, labels = noise(3 + k // 5, 3072, seed=k), np.arange(k, k + 3 + k // 5) % 10
        parts.append((images.reshape(-1, 3, 32, 32), labels))
        if version == "binary":
            records = np.c_[labels.astype(np.uint8), images]
            (directory / f"{name}.bin").write_bytes(records.tobytes())
        elif version == "python 2":
            (directory / name).write_bytes(python2_pickle(images, labels))
        else:
            content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"batch"}
            (directory / name).write_bytes(pickle.dumps(content, protocol=2))
    train = tuple(np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True))
    return {"train": train, "test": parts[5]}


def python2_pickle(images, labels):
    """As Python 2 and its numpy wrote it: byte strings, old module names, integers as flags."""
    n, data = len(images), images.tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K" + bytes([n]) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\nT" + struct.pack("<i", len(data)) + data + b"tb"
        b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu."
    )


@pytest.mark.parametrize("version", ["binary", "python 2", "python 3"])
@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_round_trip(tmp_path, version, subfolder):
    (tmp_path / subfolder).mkdir(exist_ok=True)
    written = write_cifar10(tmp_path / subfolder, version)
    for split in ("train", "test"):
        batches = datasets.cifar10(tmp_path, split=split, batch_size=2)
        assert_holds(batches, *written[split])
        assert batches.classes[3] == "cat"
        assert batches.num_classes == 10
    scaled = written["train"][0] / 255  # statistics are of the training images for both splits
    assert batches.transform.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)
    assert batches.transform.std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-12)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar100_round_trip_takes_fine_labels(tmp_path, version):
    written = {}
    for k, name in enumerate(("train", "test")):
        images, fine = noise(4, 3072, seed=k), np.array([0, 7, 42, 99])
        written[name] = images.reshape(-1, 3, 32, 32), fine
        if version == "binary":
            records = np.c_[fine.astype(np.uint8) // 5, fine.astype(np.uint8), images]
            (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
        else:
            coarse = (fine // 5).tolist()
            content = {b"data": images, b"fine_labels": fine.tolist(), b"coarse_labels": coarse}
            (tmp_path / name).write_bytes(pickle.dumps(content))
    for split in ("train", "test"):
        batches = datasets.cifar100(tmp_path, split=split)
        assert_holds(batches, *written[split])
        assert batches.num_classes == 100


def test_cifar_names_what_it_looked_for(tmp_path):
    write_cifar10(tmp_path, "binary")
    (tmp_path / "test_batch.bin").unlink()
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"test_batch.bin or test_batch, here or in cifar-"):
        datasets.cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_5.bin or .* found an empty folder"):
        datasets.cifar10(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"train.bin or train, .* found no such folder"):
        datasets.cifar100(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected records of 3073 bytes, found 0 bytes; fetch"),
        (bytes(3074), r"expected records of 3073 bytes, found 3074 bytes"),
        (b"\x0a" + bytes(3072), r"expected labels 0..9, found 10..10"),
    ],
)
def test_cifar_refuses_malformed_binaries(tmp_path, content, message):
    write_cifar10(tmp_path, "binary")
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_2.bin: {message}"):
        datasets.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a pickled dict with b'data' and b'labels', found EOFError"),
        (b"text", r"a pickled dict .* found"),
        (pickle.dumps([1]), r"a pickled dict .* found TypeError"),
        (pickle.dumps({b"data": noise(1, 3072)}), r".* found KeyError: b'labels'"),
        (
            pickle.dumps({b"data": noise(2, 3071), b"labels": [0, 1]}),
            r"uint8 images \(2, 3072\), one for each label, found uint8 \(2, 3071\)",
        ),
        (
            pickle.dumps({b"data": noise(2, 3072) / 255, b"labels": [0, 1]}),
            r"uint8 images .* found float64 \(2, 3072\)",
        ),
        (pickle.dumps({b"data": noise(1, 3072), b"labels": [10]}), r"labels 0..9, found 10..10"),
        (pickle.dumps({b"data": noise(1, 3072), b"labels": ["cat"]}), r".* found ValueError"),
    ],
)
def test_cifar_refuses_malformed_pickles(tmp_path, content, message):
    write_cifar10(tmp_path, "python 3")
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_2: expected {message}"):
        datasets.cifar10(tmp_path)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (np.load, "numpy.load")],
)
def test_a_malicious_pickle_never_runs(tmp_path, function, name):
    write_cifar10(tmp_path, "python 3")
    target = str(tmp_path / "made")
    argument = f"__import__('os').mkdir({target!r})" if function is eval else target
    content = {b"data": Call(function, argument), b"labels": []}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"UnpicklingError: a call of {name}"):
        datasets.cifar10(tmp_path)
    assert not (tmp_path / "made").exists()


# MNIST --------------------------------------------------------------------------------------------


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_mnist(directory, name="{}-{}-idx{}-ubyte", compress=False):
    written = {}
    for part, prefix, n in (("train", "train", 5), ("test", "t10k", 3)):
        images, labels = noise(n, 28, 27, seed=n), np.arange(n, dtype=np.uint8)
        written[part] = images[:, None], labels
        for kind, array in (("images", images), ("labels", labels)):
            path = directory / name.format(prefix, kind, array.ndim)
            path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return written


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("{}-{}-idx{}-ubyte", False),
        ("{}-{}-idx{}-ubyte.gz", True),
        ("{}-{}.idx{}-ubyte", False),
    ],
)
@pytest.mark.parametrize("subfolder", ["", "MNIST/raw"])
def test_mnist_round_trip(tmp_path, name, compress, subfolder):
    (tmp_path / subfolder).mkdir(parents=True, exist_ok=True)
    written = write_mnist(tmp_path / subfolder, name, compress)
    for split in ("train", "test"):
        assert_holds(datasets.mnist(tmp_path, split=split), *written[split])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", b"", r"IDX header .* 00 00 08 03, found nothing"),
        (
            "t10k-images-idx3-ubyte",
            idx(noise(3)),
            r"IDX header .* 3 dimensions, .* found 00 00 08 01",
        ),
        (
            "t10k-images-idx3-ubyte",
            idx(noise(3, 2, 2))[:-1],
            r"12 bytes for .*\(3, 2, 2\).* found 11",
        ),
        ("t10k-labels-idx1-ubyte", idx(noise(3)) + b"!", r"3 bytes for .*\(3,\).* found 4 bytes"),
        ("t10k-labels-idx1-ubyte", idx(noise(4)), r"as many t10k images as labels, found 3 and 4"),
        ("train-labels-idx1-ubyte", idx(noise(5)), r"targets must be 0..9"),
    ],
)
def test_mnist_refuses_malformed_files(tmp_path, file, content, message):
    write_mnist(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.mnist(tmp_path)


def test_mnist_refuses_a_damaged_gzip_and_names_missing_files(tmp_path):
    write_mnist(tmp_path, "{}-{}-idx{}-ubyte.gz", compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz: expected a gzip file, found"
    ):
        datasets.mnist(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte or .* found t10k-images"):
        datasets.mnist(tmp_path)


# npz ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nhw", "nchw", "nhwc"])
def test_npz_with_official_split(tmp_path, layout):
    images = noise(8, 1 if layout == "nhw" else 3, 5, 4)
    stored = {"nhw": images[:, 0], "nchw": images, "nhwc": images.transpose(0, 2, 3, 1)}[layout]
    labels = np.arange(8, dtype=np.uint8)
    path = tmp_path / "data.npz"
    np.savez(
        path, x_train=stored[:5], y_train=labels[:5, None], x_test=stored[5:], y_test=labels[5:]
    )
    train, test = datasets.npz(path), datasets.npz(path, split="test")
    assert_holds(train, images[:5], labels[:5])
    assert_holds(test, images[5:], labels[5:])
    assert test.transform == train.transform
    assert train.transform.mean == pytest.approx(images[:5].mean((0, 2, 3)) / 255, rel=1e-12)


def test_npz_without_official_split(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(50, 7)).astype(">f4")
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=np.arange(50) % 5)
    parts = [datasets.npz(tmp_path / "data.npz", split=split) for split in ("train", "test")]
    assert [part.targets.bincount().tolist() for part in parts] == [[8] * 5, [2] * 5]
    assert parts[0].transform is None
    together = torch.cat([part.inputs for part in parts])
    assert together.dtype == torch.float32
    assert sorted(together.tolist()) == sorted(inputs.tolist())


def test_npz_keeps_continuous_targets(tmp_path):
    targets = np.linspace(0, 1, 10)
    np.savez(tmp_path / "data.npz", inputs=targets[:, None], targets=targets)
    parts = [datasets.npz(tmp_path / "data.npz", split=split) for split in ("train", "test")]
    assert [part.num_examples for part in parts] == [8, 2]
    assert sorted(torch.cat([part.targets for part in parts]).tolist()) == targets.tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": noise(2, 3, 3)}, r"expected arrays x_train, .* found images; rename"),
        ({"inputs": noise(2, 3, 3), "targets": [0]}, r"as many inputs as targets, found 2 and 1"),
        ({"inputs": noise(2, 9), "targets": [0, 1]}, r"inputs: expected .* found uint8 \(2, 9\)"),
        ({"inputs": np.ones((2, 9), int), "targets": [0, 1]}, r"found int64 \(2, 9\); convert"),
        ({"inputs": np.array([[np.nan]]), "targets": [0]}, r"finite numbers, found NaN"),
        ({"inputs": np.ones((2, 9)), "targets": [[0, 1]] * 2}, r"targets: .* int64 \(2, 2\)"),
        ({"inputs": np.ones((2, 9)), "targets": ["a", "b"]}, r"targets: .* found <U1 \(2,\)"),
        ({"inputs": np.array([{}]), "targets": [0]}, r"plain arrays, found Object arrays"),
    ],
)
def test_npz_refuses(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.npz(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1]), b"PK\x03\x04 cut short"])
def test_npz_refuses_other_files(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"data.npz: expected an archive of plain arrays"):
        datasets.npz(tmp_path / "data.npz")


def test_npz_refuses_a_lone_array_and_a_damaged_archive(tmp_path):
    np.save(tmp_path / "lone.npy", noise(3))
    np.savez(tmp_path / "data.npz", inputs=noise(9, 9, 9), targets=np.arange(9))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "data.npz").write_bytes(content)
    for name in ("lone.npy", "data.npz"):
        with pytest.raises(ValueError, match=rf"{name}: expected an archive of plain arrays"):
            datasets.npz(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none.npz"):
        datasets.npz(tmp_path / "none.npz")


# image folder -------------------------------------------------------------------------------------


def write_folder(root, images, mode, names=("cat", "ant")):
    """Image k goes to class k % 2; returns images and labels in the order of reading."""
    for k, image in enumerate(images):
        path = root / names[k % 2] / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).save(path)
    (root / names[0] / "notes.txt").write_text("no image")
    return np.concatenate([images[1::2], images[::2]]), [0] * (len(images) // 2) + [1] * (
        len(images) - len(images) // 2
    )


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_image_folder_with_official_split(tmp_path, mode):
    shape = (5, 4) if mode == "L" else (5, 4, 3)
    written = {
        part: write_folder(tmp_path / part, noise(n, *shape, seed=n), mode)
        for part, n in (("train", 6), ("test", 8))
    }
    for part, (images, labels) in written.items():
        images = images[:, None] if mode == "L" else images.transpose(0, 3, 1, 2)
        batches = datasets.image_folder(tmp_path, split=part)
        assert_holds(batches, images, labels)
        assert batches.classes == ("ant", "cat")
    train = written["train"][0].reshape(6, 20, -1) / 255
    assert batches.transform.mean == pytest.approx(train.mean((0, 1)), rel=1e-12)


def test_image_folder_without_official_split(tmp_path):
    images, labels = write_folder(tmp_path, noise(20, 4, 4), "L")
    parts = [datasets.image_folder(tmp_path, split=split) for split in ("train", "test")]
    assert [part.num_examples for part in parts] == [16, 4]
    rows = [
        (int(y), x.tolist())
        for part in parts
        for x, y in zip(part.inputs, part.targets, strict=True)
    ]
    assert sorted(rows) == sorted((y, [x.tolist()]) for x, y in zip(images, labels, strict=True))


def test_one_coloured_image_makes_the_folder_rgb(tmp_path):
    write_folder(tmp_path, noise(10, 4, 4), "L")
    Image.fromarray(noise(4, 4, 4), "RGBA").save(tmp_path / "ant" / "zebra.png")
    grey = datasets.image_folder(tmp_path).inputs[0]
    assert grey.shape == (3, 4, 4)
    assert torch.equal(grey[0], grey[2])


def test_image_folder_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"two or more classes, .* found none; put"):
        datasets.image_folder(tmp_path)
    write_folder(tmp_path, noise(4, 4, 4), "L")
    Image.fromarray(noise(4, 5)).save(tmp_path / "cat" / "wide.png")
    with pytest.raises(
        ValueError, match=r"wide.png: expected 4 x 4 pixels as in .*001.png, found 5 x 4"
    ):
        datasets.image_folder(tmp_path)
    Image.fromarray(noise(4, 4).astype(np.uint16)).save(tmp_path / "cat" / "wide.png")
    with pytest.raises(ValueError, match=r"wide.png: expected 8 bits a channel, found mode I;16"):
        datasets.image_folder(tmp_path)
    content = (tmp_path / "cat" / "000.png").read_bytes()
    for damaged in (b"text", content[:60]):
        (tmp_path / "cat" / "wide.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"wide.png: expected an image, found .*; replace"):
            datasets.image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected images, found none"):
        datasets.image_folder(tmp_path)


def test_train_and_test_folders_hold_the_same_classes(tmp_path):
    write_folder(tmp_path / "train", noise(4, 4, 4), "L")
    write_folder(tmp_path / "test", noise(4, 4, 4), "L", names=("cat", "bee"))
    with pytest.raises(
        ValueError, match=r"the same in train and test, found ant, cat and bee, cat"
    ):
        datasets.image_folder(tmp_path)


# synthetic ----------------------------------------------------------------------------------------


def test_synthetic_examples_do_not_depend_on_how_many_are_drawn():
    few, many = datasets.synthetic(10, size=16), datasets.synthetic(600, size=16)
    assert torch.equal(few.inputs, many.inputs[:10])
    assert torch.equal(few.targets, many.targets[:10])
    assert few.transform == many.transform
    assert data_sha256(few) == data_sha256(datasets.synthetic(10, size=16))
    assert few.inputs.shape == (10, 3, 16, 16)


def test_synthetic_splits_seeds_and_examples_all_differ():
    train = datasets.synthetic(600, size=16)
    test = datasets.synthetic(600, size=16, split="test")
    other = datasets.synthetic(600, size=16, seed=1)
    images = torch.cat([b.inputs for b in (train, test, other)]).flatten(1).tolist()
    assert len(set(map(tuple, images))) == 1800
    assert train.transform == test.transform


def test_synthetic_classes_are_equally_frequent_and_differ_in_nothing_but_structure():
    batches = datasets.synthetic(4096, size=16, classes=4)
    counts = batches.targets.bincount().double()
    assert ((counts - 1024) ** 2 / 1024).sum() < 16.3  # chi squared, 3 degrees, p = 0.001
    means = batches.transform(batches.inputs).double().flatten(1)
    by_class = torch.stack([means[batches.targets == c].mean(0) for c in range(4)])
    error = 1 / 1024**0.5
    assert (by_class - means.mean(0)).abs().max() < 5.5 * error  # 3,072 comparisons, any one pixel


@pytest.mark.parametrize("options", [{"classes": 1}, {"size": 15}, {"difficulty": 1.1}])
def test_synthetic_refuses(options):
    with pytest.raises(ValueError, match=r"expected num_examples >= 1, classes >= 2, size >= 16"):
        datasets.synthetic(10, **options)
    with pytest.raises(ValueError, match=r"got 0, 10, 32 and 0\.5"):
        datasets.synthetic(0)


def pixels(batches):
    return batches.transform(batches.inputs).flatten(1).numpy(), batches.targets.numpy()


def test_no_linear_model_reads_synthetic_images():
    train, test = (datasets.synthetic(3000, split=split) for split in ("train", "test"))
    linear = LogisticRegression(C=1e-4, tol=1e-2, max_iter=100).fit(*pixels(train))
    assert linear.score(*pixels(train)) > 0.3  # it learns the examples by heart,
    assert linear.score(*pixels(test)) < 0.2  # and nothing more: chance is 0.1


@pytest.mark.slow
def test_a_small_cnn_reads_synthetic_images():
    train, test = (datasets.synthetic(5000, difficulty=0.2, split=s) for s in ("train", "test"))
    model = models.small_cnn(3, seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=8 * 79)
    for _ in range(8):
        for batch in torch.randperm(5000, generator=generator).split(64):
            optimiser.zero_grad()
            outputs = model(train.transform(train.inputs[batch]))
            torch.nn.functional.cross_entropy(outputs, train.targets[batch]).backward()
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in test)
    assert right / test.num_examples > 0.7
