"""A result survives everything: the replay test kills the writer at every call that it makes."""

import errno
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from archives import make_v1
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from jobs import PLAN, VALUES, python, same, squares, sweep, until
from numpy.testing import assert_array_equal

from landscape import results
from landscape.execution import Outcome, WorkerLost
from landscape.results import STATUS, ResultError, dataset, load, problems, provenance, save

PENDING, OK, NONFINITE, FAILED = range(4)


def assert_clean(folder):
    """No temporary file is left, and every lock is free."""
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob(".*.owner"))
    for lock in folder.glob(".*.lock"):
        with FileLock(lock, timeout=0):
            pass


# Datasets -----------------------------------------------------------------------------------------


def test_a_dataset_says_what_it_is():
    result = dataset({"own_loss": ("t", [1.0])}, {"t": [0.0]}, analysis="line", title="A line")
    assert result.attrs["title"] == "A line"
    assert result.attrs["analysis"] == "line"
    assert result.attrs["schema_version"] == results.SCHEMA_VERSION
    assert result["own_loss"].attrs["long_name"] == "own loss"
    assert json.loads(result.attrs["provenance"]) == provenance()
    assert provenance()["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert problems(result) == []


@pytest.mark.parametrize(
    "value", [None, True, {"a": [1, None]}, [1, 2], ("a",), 2**70, Path("x"), np.arange(2)]
)
def test_attributes_that_hdf5_refuses_become_json(tmp_path, value):
    result = dataset({}, {}, analysis="", title="", value=value)
    text = load(save(result, tmp_path / "r.h5")).attrs["value"]
    expected = {tuple: list, Path: str, np.ndarray: np.ndarray.tolist}
    convert = next((f for kind, f in expected.items() if isinstance(value, kind)), lambda v: v)
    assert json.loads(text) == convert(value)


@pytest.mark.parametrize("value", ["", "é", 3, 2.5, float("inf"), np.int64(3), np.float32(0.5)])
def test_text_and_numbers_stay_as_they_are(tmp_path, value):
    result = dataset({}, {}, analysis="", title="", value=value)
    assert load(save(result, tmp_path / "r.h5")).attrs["value"] == value


def test_arguments_are_left_as_they_were():
    loss = xr.DataArray([1.0], dims="t")
    dataset({"loss": loss, "status": ("t", [1])}, {"t": [0.0]}, analysis="", title="")
    assert loss.attrs == {}


def test_problems_are_named():
    result = make_v1.v1().drop_attrs(deep=False).assign_attrs(schema_version=99)
    del result["wrong"].attrs["long_name"]
    result["status"][0] = 7
    assert problems(result) == [
        "the attribute 'title' is missing",
        "the attribute 'analysis' is missing",
        "the attribute 'created' is missing",
        "the attribute 'provenance' is missing",
        "the schema version is 99, not 1",
        "the variable 'wrong' has no long_name",
        "1 points are nonfinite",
        "1 points are failed",
        "1 points have the unknown status 7",
    ]


# Files --------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    result = make_v1.v1()
    path = save(result, tmp_path / "r.h5")
    xr.testing.assert_identical(load(path), result)
    assert_clean(tmp_path)


def test_a_file_is_written_and_read_by_h5netcdf_even_beside_netcdf4(tmp_path, monkeypatch):
    engines = []
    read, written = xr.load_dataset, xr.Dataset.to_netcdf

    def spy(function, *args, **options):
        engines.append(options["engine"])
        return function(*args, **options)

    monkeypatch.setattr(xr, "load_dataset", partial(spy, read))
    monkeypatch.setattr(xr.Dataset, "to_netcdf", lambda *a, **o: spy(written, *a, **o))
    load(save(make_v1.v1(), tmp_path / "r.h5"))
    assert engines == ["h5netcdf"] * 2


def test_plain_h5py_reads_a_file(tmp_path):
    path = save(make_v1.v1(), tmp_path / "r.h5")
    with h5py.File(path) as file:
        assert b"h5netcdf" in file.attrs["_NCProperties"]
        assert file.attrs["title"] == "Archive of version 1"
        assert file["loss"].shape == (2, 4)
        assert file["loss"].attrs["units"] == "nats"
        assert [dim[0].name for dim in file["loss"].dims] == ["/split", "/t"]
        assert file["t"].is_scale
        assert file["name"].asstr()[:].tolist() == make_v1.NAMES
        assert file["status"].attrs["flag_meanings"] == " ".join(STATUS)
        np.testing.assert_array_equal(file["loss"][:], make_v1.LOSS)


def test_a_file_of_schema_version_1_loads():
    archive = Path(make_v1.__file__).with_name("v1.h5")
    result = load(archive)
    assert result.attrs["schema_version"] == 1
    xr.testing.assert_identical(result, make_v1.v1())


def test_a_newer_schema_is_refused(tmp_path):
    path = save(make_v1.v1().assign_attrs(schema_version=2), tmp_path / "r.h5")
    with pytest.raises(ResultError, match="has schema version 2, this program reads 1: install a"):
        load(path)


def test_hdf5_of_others_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    xr.Dataset({"x": 1}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ResultError, match="no landscape result: 'schema_version' is missing"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultError, match="nowhere.h5: no such results file"):
        load(tmp_path / "nowhere.h5")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = save(make_v1.v1(), tmp_path / "r.h5")
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(
        ResultError, match=r"r.h5 \(\d+ bytes\) cannot be read as HDF5; it is damaged"
    ):
        load(path)


def test_text_is_refused(tmp_path):
    path = tmp_path / "r.h5"
    path.write_text("t,loss\n0,1\n")
    with pytest.raises(ResultError, match=r"r.h5 \(11 bytes\) cannot be read"):
        load(path)
    with pytest.raises(ResultError, match="cannot be read"):
        sweep(path)
    assert path.read_text() == "t,loss\n0,1\n"


def test_a_reader_keeps_the_snapshot_that_it_opened(tmp_path):
    path = save(make_v1.v1(), tmp_path / "r.h5")
    with xr.open_dataset(path, engine="h5netcdf") as reader, h5py.File(path) as plain:
        save(make_v1.v1().assign(loss=make_v1.v1()["loss"] + 1), path)
        np.testing.assert_array_equal(reader["loss"], make_v1.LOSS)
        np.testing.assert_array_equal(plain["loss"], make_v1.LOSS)
    np.testing.assert_array_equal(load(path)["loss"], make_v1.LOSS + 1)


# The replay test ----------------------------------------------------------------------------------
#
# Every call that changes the folder is recorded. A kill leaves what a prefix of the calls leaves,
# the last of them perhaps in part. A power cut leaves less: of the writes that were not synced any
# may be missing, and of the changes of names that were not synced the last ones.

NAME = "replayed.h5"


def record(monkeypatch, folder):
    """Calls on files in a folder, from now on: a growing list. A write takes 1000 bytes at most."""
    calls, opened, names, real = [], {}, {}, {n: getattr(os, n) for n in CALLS}

    def ours(path):
        return Path(path).parent == folder and not str(path).endswith((".lock", ".owner"))

    def open_(path, flags, *args, **options):
        file = real["open"](path, flags, *args, **options)
        if Path(path) == folder:
            opened[file] = "folder"
        elif ours(path):
            if Path(path).name not in names:
                names[Path(path).name] = f"file {len(calls)}"
                calls.append(("create", Path(path).name, names[Path(path).name]))
            elif flags & os.O_TRUNC:
                calls.append(("truncate", names[Path(path).name]))
            opened[file] = names[Path(path).name]
        return file

    def write(file, data):
        if file not in opened:
            return real["write"](file, data)
        offset, data = os.lseek(file, 0, os.SEEK_CUR), bytes(data[:1000])
        calls.append(("write", opened[file], offset, data))
        return real["write"](file, data)

    def fsync(file):
        calls.append(("fsync", opened[file]))
        real["fsync"](file)

    def close(file):
        opened.pop(file, None)
        real["close"](file)

    def replace(a, b):
        real["replace"](a, b)
        if ours(b):
            names[Path(b).name] = names.pop(Path(a).name)
            calls.append(("replace", Path(a).name, Path(b).name))

    def unlink(path, **options):
        real["unlink"](path, **options)
        if ours(path):
            names.pop(Path(path).name)
            calls.append(("unlink", Path(path).name))

    for name, fake in zip(CALLS, (open_, write, fsync, close, replace, unlink), strict=True):
        monkeypatch.setattr(os, name, fake)
    return calls


CALLS = ("open", "write", "fsync", "close", "replace", "unlink")


def contents(calls, lost=()):
    """Bytes of the published file after some calls without those lost; None if it is absent."""
    names, files = {}, {}
    for index, call in enumerate(calls):
        if index in lost:
            continue
        match call:
            case ("create", name, file):
                names[name] = file
            case ("truncate", file):
                files[file] = b""
            case ("write", file, offset, data):
                before = files.get(file, b"").ljust(offset, b"\0")
                files[file] = before[:offset] + data + before[offset + len(data) :]
            case ("replace", a, b) if a in names:
                names[b] = names.pop(a)
            case ("unlink", name):
                names.pop(name, None)
    return files.get(names[NAME], b"") if NAME in names else None


def unsynced(calls):
    """Indices of the calls that a power cut may undo: those on data, and those on names."""
    data, of_names = {}, []
    for index, call in enumerate(calls):
        match call:
            case ("write", file, *_) | ("truncate", file):
                data.setdefault(file, []).append(index)
            case ("create" | "replace" | "unlink", *_):
                of_names.append(index)
            case ("fsync", "folder"):
                of_names = []
            case ("fsync", file):
                data.pop(file, None)
    return [index for indices in data.values() for index in indices], of_names


def acknowledged(calls):
    """Status of every point at the last commit that had returned; None before the first."""
    return next((call[1] for call in reversed(calls) if call[0] == "acknowledge"), None)


def states_after_a_kill(calls):
    for end in range(len(calls) + 1):
        done = calls[:end]
        yield done, contents(done)
        if end < len(calls) and calls[end][0] == "write":
            _, file, offset, data = calls[end]
            for part in (1, len(data) // 2, len(data) - 1):
                yield done, contents([*done, ("write", file, offset, data[:part])])


def states_after_a_power_cut(calls, rng, draws):
    for end in range(len(calls) + 1):
        done = calls[:end]
        data, names = unsynced(done)
        if data or names:
            yield done, contents(done, {*data, *names})
            yield done, contents(done, {*data})
            yield done, contents(done, {*names})
            for _ in range(draws):
                some = {index for index in data if rng.random() < 0.5}
                yield done, contents(done, {*some, *names[rng.randint(0, len(names)) :]})


def violation(image, status, truth, published):
    """What is wrong with a file, given the points that were acknowledged; None if nothing is.

    A file that never was complete is not opened: HDF5 may read one with holes for ever.
    """
    if image is None:
        return None if status is None else "the file is missing"
    if image not in published:
        return "the file is torn"
    found = published[image]
    there = found["status"].values == OK
    if status is not None and (there < (status == OK)).any():
        return "an acknowledged point is missing"
    for name in truth.data_vars if there.any() else ():
        wanted, got = (r[name].isel(t=there) if "t" in r[name].dims else r[name]
                       for r in (truth, found))  # fmt: skip
        if not wanted.equals(got):
            return f"{name} is wrong"
    return None


def replay(monkeypatch, tmp_path, publish, draws=4):
    """The number of calls, and what is wrong or None for every state after kills and power cuts.

    `draws` random subsets of lost writes are tried after each call.
    """
    truth = sweep(tmp_path / "truth.h5")
    folder = tmp_path / "folder"
    folder.mkdir()
    published = {}
    with monkeypatch.context() as patch:
        calls = record(patch, folder)

        def acknowledging(result, path):
            publish(result, path)
            calls.append(("acknowledge", result["status"].values.copy()))
            assert contents(calls) == path.read_bytes()  # nothing has escaped the recording
            published[path.read_bytes()] = load(path)

        patch.setattr(results, "_publish", acknowledging)
        interrupted = partial(raising_at, 6, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep(folder / NAME, interrupted, chunk=2)
        sweep(folder / NAME, chunk=2)
    assert contents(calls) == (folder / NAME).read_bytes()
    assert (acknowledged(calls) == OK).all()
    rng = random.Random(0)
    violations = {"kill": [], "power": []}
    for kind, states in (
        ("kill", states_after_a_kill(calls)),
        ("power", states_after_a_power_cut(calls, rng, draws)),
    ):
        for done, image in states:
            status = acknowledged(done)
            violations[kind].append(violation(image, status, truth, published))
    return len(calls), violations


def raising_at(index, error, t):
    """`squares`, but for a point at which it raises."""
    if VALUES[index] in t:
        raise error
    return squares(t)


@pytest.mark.parametrize("draws", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_or_a_power_cut_at_any_call_loses_nothing_acknowledged(monkeypatch, tmp_path, draws):
    num_calls, violations = replay(monkeypatch, tmp_path, results._publish, draws)
    assert violations["kill"] == [None] * len(violations["kill"])
    assert violations["power"] == [None] * len(violations["power"])
    assert len(violations["kill"]) > 200
    assert len(violations["power"]) > 500
    print(num_calls, {kind: len(found) for kind, found in violations.items()})


def without_fsync(result, path):
    temporary = path.with_suffix(".tmp")
    write_with(temporary, result.to_netcdf(engine="h5netcdf"))
    temporary.replace(path)


def in_place(result, path):
    write_with(path, result.to_netcdf(engine="h5netcdf"), os.fsync)


def write_with(path, image, sync=lambda file: None):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while len(image):
        image = image[os.write(file, image) :]
    sync(file)
    os.close(file)


def without_fsync_of_the_folder(result, path):
    temporary = path.with_suffix(".tmp")
    write_with(temporary, result.to_netcdf(engine="h5netcdf"), os.fsync)
    temporary.replace(path)


@pytest.mark.parametrize(
    ("publish", "kind", "expected"),
    [
        (in_place, "kill", "the file is torn"),
        (without_fsync, "power", "the file is torn"),
        (without_fsync_of_the_folder, "power", "an acknowledged point is missing"),
    ],
)
def test_the_replay_finds_what_is_wrong_with_simpler_writers(
    monkeypatch, tmp_path, publish, kind, expected
):
    _, violations = replay(monkeypatch, tmp_path, publish)
    assert violations[kind].count(expected) > 20


# Faults that are reported -------------------------------------------------------------------------


def failing(monkeypatch, number):
    """Let the call with this number, among writes, syncs and renames, find the disk full."""
    made = []

    def limited(real, *args):
        made.append(real)
        if len(made) - 1 == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    for name in ("write", "fsync", "replace"):
        monkeypatch.setattr(os, name, partial(limited, getattr(os, name)))
    return made


def test_a_full_disk_at_any_call_leaves_the_last_commit_and_can_be_mended(monkeypatch, tmp_path):
    whole = sweep(tmp_path / "whole.h5", chunk=5)
    with monkeypatch.context() as patch:
        made = failing(patch, None)
        sweep(tmp_path / "count.h5", chunk=5)
    assert len(made) == 4 * 4  # commits, each with a write, two syncs and a rename
    for number in range(len(made)):
        path = tmp_path / str(number) / "r.h5"
        path.parent.mkdir()
        with monkeypatch.context() as patch:
            failing(patch, number)
            with pytest.raises(
                ResultError,
                match="r.h5 could not be written: No space left on device. What was on disk "
                "before is complete; mend this and run the same command again",
            ):
                sweep(path, chunk=5)
        assert_clean(path.parent)
        commits, call = divmod(number, 4)
        commits += call == 3  # the folder is synced after the new file has its name
        if commits:
            done = int((load(path)["status"] == OK).sum())
            assert done == min(5 * (commits - 1), len(VALUES))
        else:
            assert not path.exists()
        assert same(sweep(path, chunk=5), whole)


def untouchable(t):
    raise AssertionError("nothing may be computed")


def test_a_missing_folder_is_refused_first(tmp_path):
    with pytest.raises(ResultError, match="the folder .*nowhere does not exist; create it first"):
        sweep(tmp_path / "nowhere" / "r.h5", untouchable)
    with pytest.raises(ResultError, match="does not exist; create it first"):
        save(make_v1.v1(), tmp_path / "nowhere" / "r.h5")


def test_a_folder_as_output_is_refused_first(tmp_path):
    with pytest.raises(ResultError, match="is a folder; name a file such as .*result.h5"):
        sweep(tmp_path, untouchable)


def test_a_device_as_output_is_refused_first(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResultError, match="is a device or a pipe; a result needs a file"):
        sweep(tmp_path / "pipe", untouchable)
    assert (tmp_path / "pipe").is_fifo()


def test_a_read_only_folder_is_refused_first(tmp_path, monkeypatch):
    def denied(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)  # the owner of the machine may write everywhere
    with pytest.raises(ResultError, match="cannot be written to: Permission denied"):
        sweep(tmp_path / "r.h5", untouchable)


def test_stale_temporary_files_are_swept(tmp_path):
    (tmp_path / ".r[1].h5.123.tmp").write_bytes(b"half")
    (tmp_path / ".other.h5.123.tmp").write_bytes(b"of another output")
    sweep(tmp_path / "r[1].h5")
    assert [p.name for p in tmp_path.glob(".*.tmp")] == [".other.h5.123.tmp"]


# Sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_is_what_one_call_gives(tmp_path):
    result = sweep(tmp_path / "r.h5", chunk=5)
    xr.testing.assert_identical(load(tmp_path / "r.h5"), result)
    assert same(result.drop_vars("status"), squares(VALUES))
    assert result["loss"].attrs["units"] == "nats"
    assert result.attrs["distance"] == 2.5
    assert result.attrs["note"] == "null"
    assert (result["status"] == OK).all()
    assert json.loads(result.attrs["plan"])["task"] == "squares"
    assert_clean(tmp_path)


def test_the_first_commit_comes_before_any_work(tmp_path):
    def check(t):
        if t[0] == VALUES[0]:
            assert (load(tmp_path / "r.h5")["status"] == PENDING).all()
        return squares(t)

    sweep(tmp_path / "r.h5", check)


def test_a_part_may_have_a_status_of_its_own_along_more_dimensions(tmp_path):
    def compute(t):
        status = np.where([t > 0.5, t > 2], NONFINITE, OK).astype(np.uint8)
        return squares(t).assign(status=(("split", "t"), status))

    result = sweep(tmp_path / "r.h5", compute)
    assert result["status"].dims == ("split", "t")
    np.testing.assert_array_equal(result["status"] == NONFINITE, [VALUES > 0.5, VALUES > 2])
    assert result["status"].attrs["flag_meanings"] == " ".join(STATUS)
    sweep(tmp_path / "r.h5", untouchable)  # a point that is not finite is done


def test_later_parts_may_need_a_wider_type(tmp_path):
    def compute(t):
        kind = np.int64 if t[0] < 0 else np.float64
        return xr.Dataset({"loss": ("t", (1000 * t).astype(kind))}, {"t": t})

    result = sweep(tmp_path / "r.h5", compute)
    np.testing.assert_array_equal(
        result["loss"], np.where(VALUES < 0, np.trunc(1000 * VALUES), 1000 * VALUES)
    )


def test_equal_points_are_kept_apart(tmp_path):
    result = sweep(tmp_path / "r.h5", values=np.array([0.5, 0.5, 0.25]))
    assert result["wrong"].values.tolist() == [500, 500, 250]


def test_chunks_grow_to_the_wanted_time_in_multiples_of_a_chunk(tmp_path, monkeypatch):
    sizes, clock = [], [0.0]
    monkeypatch.setattr(results.time, "perf_counter", lambda: clock[0])

    def compute(t):
        sizes.append(len(t))
        clock[0] += 0.1 * len(t) if len(sizes) < 5 else 10
        return xr.Dataset({"loss": ("t", t)}, {"t": t})

    sweep(tmp_path / "r.h5", compute, values=np.arange(100.0), chunk=3, seconds=1.0)
    assert sizes == [3, 12, 12, 12, 12, *[3] * 16, 1]


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": -1}])
def test_a_chunk_has_at_least_one_point(tmp_path, options):
    with pytest.raises(ValueError, match=r"in chunks of at least 1, got \['t'\] and"):
        sweep(tmp_path / "r.h5", **options)


def test_a_sweep_over_two_dimensions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"over one dimension .* got \['x', 'y'\] and 1"):
        results.sweep(squares, {"x": [1], "y": [1]}, output=tmp_path / "r.h5", plan={},
                      title="", analysis="")  # fmt: skip


def test_a_sweep_over_nothing_is_empty(tmp_path):
    assert len(sweep(tmp_path / "r.h5", values=np.zeros(0))["t"]) == 0


def test_a_finished_sweep_computes_nothing(tmp_path):
    result = sweep(tmp_path / "r.h5")
    xr.testing.assert_identical(sweep(tmp_path / "r.h5", untouchable), result)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_sweep_goes_on_after_an_exception(tmp_path, error):
    with pytest.raises(error):
        sweep(tmp_path / "r.h5", partial(raising_at, 7, error), chunk=2)
    assert_clean(tmp_path)
    half = load(tmp_path / "r.h5")
    assert half["status"].values.tolist() == [OK] * 6 + [PENDING] * 6
    assert half["loss"][:, 6:].isnull().all()
    assert half["name"][6:].values.tolist() == [""] * 6
    asked = []
    result = sweep(tmp_path / "r.h5", lambda t: asked.extend(t) or squares(t), chunk=2)
    assert asked == VALUES[6:].tolist()
    assert same(result, sweep(tmp_path / "whole.h5"))


def test_another_plan_is_refused_and_named(tmp_path):
    path = tmp_path / "r.h5"
    sweep(path)
    before = path.read_bytes()
    with pytest.raises(
        ResultError,
        match="(?s)another plan and is left as it is. What differs:\n  seed: 0 -> 1\nChoose "
        "another output, or start anew with --overwrite",
    ):
        sweep(path, untouchable, plan=PLAN | {"seed": 1})
    with pytest.raises(ResultError, match='differs:\n  dtype: null -> "float64"\n'):
        sweep(path, untouchable, plan=PLAN | {"dtype": "float64"})
    with pytest.raises(ResultError, match=r"differs:\n  t: \[-1.0, .*\.\.\. -> \[0.0\]\n"):
        sweep(path, untouchable, values=np.zeros(1))
    assert path.read_bytes() == before
    assert_clean(tmp_path)
    result = sweep(path, plan=PLAN | {"seed": 1}, overwrite=True)
    assert json.loads(result.attrs["plan"])["seed"] == 1


def test_another_schema_version_is_another_plan(tmp_path, monkeypatch):
    sweep(tmp_path / "r.h5")
    monkeypatch.setattr(results, "SCHEMA_VERSION", 2)
    with pytest.raises(ResultError, match="differs:\n  schema_version: 1 -> 2\n"):
        sweep(tmp_path / "r.h5", untouchable)


# Other processes ----------------------------------------------------------------------------------


def test_a_killed_sweep_goes_on_and_a_second_writer_is_refused_before(tmp_path):
    path = tmp_path / "r.h5"
    writer = python(path)
    try:
        until(lambda: path.exists() and (load(path)["status"] == OK).sum() > 2)
        name = f"process {writer.pid} on {socket.gethostname()}"
        begin = time.monotonic()
        with pytest.raises(ResultError, match=f"being written by {name}; wait for it, or stop it"):
            sweep(path, untouchable)
        with pytest.raises(ResultError, match=f"being written by {name}"):
            save(make_v1.v1(), path)
        assert time.monotonic() - begin < 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    done = int((load(path)["status"] == OK).sum())
    assert 2 < done < len(VALUES)
    asked = []
    result = sweep(path, lambda t: asked.extend(t) or squares(t))
    assert asked == VALUES[done:].tolist()
    assert same(result, sweep(tmp_path / "whole.h5"))
    assert_clean(tmp_path)


def test_an_unreadable_owner_is_another_process(tmp_path):
    with (
        FileLock(tmp_path / ".r.h5.lock"),
        pytest.raises(ResultError, match="being written by another process; wait"),
    ):
        sweep(tmp_path / "r.h5", untouchable)


# Executors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_threads_give_the_same_arrays(tmp_path, threads, seconds):
    with ThreadPoolExecutor(threads) as executor:
        result = sweep(tmp_path / "r.h5", executor=executor, chunk=2, seconds=seconds)
    assert same(result, sweep(tmp_path / "here.h5"))
    xr.testing.assert_identical(load(tmp_path / "r.h5"), result)


def test_processes_give_the_same_arrays(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        result = sweep(tmp_path / "r.h5", executor=executor, chunk=2)
    assert same(result, sweep(tmp_path / "here.h5"))


def test_points_that_fail_are_told_and_tried_again(tmp_path):
    path = tmp_path / "r.h5"
    error = ValueError("the loss is broken")
    with ThreadPoolExecutor(2) as executor:
        result = sweep(path, partial(raising_at, 7, error), executor=executor, chunk=2)
        assert result["status"].values.tolist() == [OK] * 6 + [FAILED] * 2 + [OK] * 4
        assert json.loads(result.attrs["failures"]) == [
            {"points": [6, 7], "error": "ValueError: the loss is broken"}
        ]
        xr.testing.assert_identical(load(path), result)
        asked = []
        again = sweep(path, lambda t: asked.extend(t) or squares(t), executor=executor, chunk=2)
    assert asked == VALUES[6:8].tolist()
    assert "failures" not in again.attrs
    assert same(again, sweep(tmp_path / "here.h5"))


def test_a_failure_before_the_first_result_keeps_its_status(tmp_path):
    def compute(t):
        if t[0] == VALUES[0]:
            raise ValueError
        return squares(t).assign(status=(("split", "t"), np.ones((2, len(t)), np.uint8)))

    with ThreadPoolExecutor(1) as executor:
        result = sweep(tmp_path / "r.h5", compute, executor=executor)
    np.testing.assert_array_equal(result["status"], [[FAILED] + [OK] * 11] * 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, WorkerLost])
def test_commits_of_an_executor_are_seconds_apart_and_the_last_is_not_lost(
    tmp_path, monkeypatch, error
):
    commits, publish = [], results._publish

    def interrupted(function, tasks, executor):
        for index in range(5):
            yield Outcome(index, function(tasks[index]))
        raise error

    monkeypatch.setattr(results, "_publish", lambda r, p: commits.append(1) or publish(r, p))
    monkeypatch.setattr(results, "map_tasks", interrupted)
    with pytest.raises(error):
        sweep(tmp_path / "r.h5", executor=object(), chunk=2, seconds=60)
    assert len(commits) == 2
    assert (load(tmp_path / "r.h5")["status"] == OK).values.tolist() == [True] * 10 + [False] * 2
    assert same(sweep(tmp_path / "r.h5"), sweep(tmp_path / "here.h5"))


class Shuffled(Executor):
    """Runs tasks when all of them are there, in an order of its own."""

    def __init__(self, order):
        self.order, self.waiting = order, []

    def submit(self, function, *args):
        self.waiting.append((Future(), function, args))
        future = self.waiting[-1][0]
        if len(self.waiting) == len(self.order):
            for index in self.order:
                one, function, args = self.waiting[index]
                one.set_result(function(*args))
        return future


@settings(max_examples=10, deadline=None)
@given(st.data(), st.integers(1, 13))
def test_neither_order_nor_size_of_chunks_matters(data, chunk):
    order = data.draw(st.permutations(range(-(-len(VALUES) // chunk))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.h5")
        result = sweep(path, executor=Shuffled(order), chunk=chunk, seconds=60.0)
        assert same(result.drop_vars("status"), squares(VALUES))
        assert same(load(path), result)


def test_tolerant_work_goes_on_after_values_that_fail(tmp_path):
    def picky(values):
        if 3.0 in values:
            raise ValueError("not three")
        return xr.Dataset({"y": ("x", values**2)}, coords={"x": values})

    options = {"plan": {}, "title": "squares", "analysis": "squares", "seconds": 1e9}
    over = {"x": np.arange(6.0)}
    with pytest.raises(ValueError, match="not three"):
        results.sweep(picky, over, output=tmp_path / "strict.h5", **options)
    for chunk in (1, 4):
        result = results.sweep(
            picky, over, output=tmp_path / f"{chunk}.h5", chunk=chunk, tolerant=True, **options
        )
        failed = (result["status"] == FAILED).values
        assert failed.tolist() == [False] * 3 * (chunk == 1) + [True] * (4 if chunk == 4 else 1) + (
            [False] * 2
        )
        assert_array_equal(result["y"][~failed], over["x"][~failed] ** 2)
        assert "not three" in result.attrs["failures"]
    mended = results.sweep(
        lambda values: xr.Dataset({"y": ("x", values**2)}, coords={"x": values}),
        over, output=tmp_path / "1.h5", tolerant=True, **options,
    )  # fmt: skip
    assert (mended["status"] == OK).all()
    assert "failures" not in mended.attrs


def test_a_sweep_that_never_began_leaves_the_output_free(tmp_path):
    def broken(values):
        raise ValueError("no good")

    options = {"title": "squares", "analysis": "squares"}
    path = tmp_path / "r.h5"
    with pytest.raises(ValueError, match="no good"):
        results.sweep(broken, {"x": VALUES}, output=path, plan={"way": 1}, **options)
    assert sweep(path)["status"].isin([OK]).all()  # by another plan
    with pytest.raises(ResultError, match="another plan"):
        results.sweep(broken, {"x": VALUES}, output=path, plan={"way": 1}, **options)
