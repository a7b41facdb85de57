"""Every format loads exactly; every fault is refused with a CheckpointError; nothing else."""

import argparse
import collections
import datetime
import hashlib
import json
import logging
import os
import pathlib
import pickle
import random
import threading
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import landscape
from landscape.checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    describe,
    load_state,
    save_checkpoint,
    sha256,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def state():
    return network().state_dict()


@pytest.fixture
def adam(state):
    """State of an optimizer after one step, with its moments under integer keys."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def save(value, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert type(found[name]) is torch.Tensor
        assert found[name].device.type == "cpu"
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class Touch:
    """Unpickled without restrictions, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# Formats


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dict(tmp_path, state, suffix, zipped):
    path = save(state, tmp_path / f"a{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(load_state(path), state)
    assert_same(load_state(str(path), model=network(1)), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "a.b"])
def test_nested_state_dict_beside_other_things(tmp_path, state, adam, key):
    tree = state
    for part in reversed(key.split(".")):
        tree = {part: tree}
    extras = {
        "optimizer": adam,
        "optim_state": {"state": adam["state"]},
        "scheduler": {"last_epoch": 3, "_last_lr": [0.1]},
        "epoch": 3,
        "best": torch.tensor(0.9),
        "metrics": {"loss": torch.tensor(0.5)},
        "rng": {"torch": torch.get_rng_state()},
    }
    path = save(tree | extras, tmp_path / "a.pt")
    assert_same(load_state(path), state)
    assert_same(load_state(path, key=key), state)
    assert describe(path)["key"] == key


def test_optimizer_moments_by_name_are_no_candidate(tmp_path, state):
    moments = {name: torch.zeros(2) for name in state}
    groups = {"params": list(state), "lr": 0.1}
    optimizer = {"state": {n: {"exp_avg": m} for n, m in moments.items()}, "param_groups": [groups]}
    flat = {f"state.{n}.exp_avg": m for n, m in moments.items()} | {"param_groups.a.lr": moments}
    tree = {
        "model": state,
        "adam": optimizer,
        "flat": flat,
        "optimizer_state": {"exp_avg": moments},
        "state": {0: {"exp_avg": torch.ones(2)}},
        0: moments,
    }
    assert_same(load_state(save(tree, tmp_path / "a.pt")), state)


def test_scalar_weights_are_found_when_there_is_nothing_else(tmp_path):
    path = save({"model": {"a": torch.tensor(1.5)}, "epoch": 1}, tmp_path / "a.pt")
    assert load_state(path)["a"] == 1.5


def test_parameters_and_extra_state(tmp_path, state):
    given = {n: nn.Parameter(t) for n, t in state.items() if t.is_floating_point()}
    found = load_state(save(given | {"0._extra_state": {"scale": 1}}, tmp_path / "a.pt"))
    assert_same(found, given)
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("prefix", ["net.", "net.model."])
@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
def test_lightning(tmp_path, state, adam, prefix, wrapper):
    lightning = {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": prefixed(state, prefix + wrapper),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [adam],
        "hyper_parameters": argparse.Namespace(lr=0.1, path=pathlib.Path("data")),
    }
    path = save(lightning, tmp_path / "epoch=3-step=1200.ckpt")
    assert_same(load_state(path, model=network(1)), state)
    assert_same(load_state(path, strip_prefix=prefix), state)
    assert_same(load_state(path, strip_prefix=prefix.rstrip(".")), state)
    assert_same(load_state(path), prefixed(state, prefix))
    assert describe(path)["step"] == 1200


def test_lightning_average_beside_training_weights_is_ambiguous(tmp_path, state):
    average = network(1).state_dict()
    path = save({"state_dict": average, "current_model_state": state}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"(?s)state_dict: 9 tensors.*current_model_state"):
        load_state(path)
    assert_same(load_state(path, key="state_dict"), average)


def test_timm_with_two_candidates(tmp_path, state):
    average = network(1).state_dict()
    given = {
        "epoch": 3,
        "arch": "resnet20",
        "state_dict": state,
        "state_dict_ema": average,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(0.9),
    }
    path = save(given, tmp_path / "model_best.pth.tar")
    with pytest.raises(CheckpointError, match="state_dict_ema: 9 tensors, 43 values") as error:
        load_state(path)
    assert "--state-key" in str(error.value)
    assert "key=" in str(error.value)
    assert_same(load_state(path, key="state_dict_ema"), average)
    with pytest.raises(CheckpointError, match=r"(?s)with the key 'ema', found.*state_dict_ema"):
        load_state(path, key="ema")


@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(a=1, b=[2]),
        pathlib.PurePosixPath("a/b"),
        pathlib.Path("a/b"),
        pathlib.PureWindowsPath("a/b"),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.timedelta(seconds=3),
        datetime.date(2026, 1, 2),
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.arange(6.0).reshape(2, 3),
        np.array(["a", "b"]),
        np.random.RandomState(0).get_state(),
        collections.OrderedDict(a=1),
        {1, 2},
        torch.float16,
        torch.device("cpu"),
        2**100,
    ],
    ids=lambda extra: type(extra).__name__,
)
def test_harmless_objects_load(tmp_path, state, extra):
    before = set(torch.serialization.get_safe_globals())
    assert_same(load_state(save({"model": state, "extra": extra}, tmp_path / "a.pt")), state)
    assert set(torch.serialization.get_safe_globals()) == before


def test_names_of_numpy_1_load(tmp_path, state):
    path = tmp_path / "a.pt"
    save({"model": state, "extra": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert_same(load_state(path), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", ""])
def test_wrappers(tmp_path, state, prefix):
    path = save(prefixed(state, prefix), tmp_path / "a.pt")
    assert_same(load_state(path), state)
    assert_same(load_state(path, model=network(1)), state)
    if prefix:
        assert_same(load_state(path, strip_prefix=prefix), state)


def test_wrapper_inside_a_name(tmp_path, caplog):
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    state = model.state_dict()
    inside = {
        n.replace("body.", "module.body._orig_mod.").replace("head", "module.head"): t
        for n, t in state.items()
    }
    path = save(inside, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO, logger="landscape"):
        assert_same(load_state(path), state)
    assert "_orig_mod. removed (2 names)" in caplog.text
    assert describe(path)["renamed"] == {"module. removed": 4, "_orig_mod. removed": 2}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing the compiler
def test_compiled_model_takes_a_plain_state(tmp_path, state):
    compiled = torch.compile(network(1))
    found = load_state(save(state, tmp_path / "a.pt"), model=compiled)
    assert_same(found, prefixed(state, "_orig_mod."))
    compiled.load_state_dict(found)


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "_orig_mod.", "net._orig_mod."])
@pytest.mark.parametrize("both", [True, False])
def test_a_submodule_called_module_survives(tmp_path, prefix, both):
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    if both:  # without its `module.` this name is that of another
        model["module"].add_module("head", nn.Linear(2, 2))
    state = model.state_dict()
    path = save(prefixed(state, prefix), tmp_path / "a.pt")
    assert_same(load_state(path, model=model), state)
    if both:
        with pytest.raises(CheckpointError, match=r"would both be named"):
            load_state(path)


def test_name_collision(tmp_path, state):
    path = save(state | {"module.0.weight": state["0.weight"]}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"0.weight and module.0.weight would both be named"):
        load_state(path)


def test_averaged_model(tmp_path, state):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    path = save(averaged.state_dict(), tmp_path / "a.pt")
    assert_same(load_state(path), state)
    assert_same(load_state(path, model=network(1)), state)
    assert_same(load_state(path, model=averaged), averaged.state_dict())
    assert describe(path)["renamed"] == {"module. removed": 9, "left out": 1}


def test_strip_prefix_takes_one_part(tmp_path, state):
    path = save(prefixed(state, "net.") | {"loss.w": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"begin with net. \(9\), loss. \(1\).*prefix"):
        load_state(path, model=network())
    assert_same(load_state(path, model=network(), strip_prefix="net."), state)
    assert describe(path, strip_prefix="net.")["renamed"] == {"net. removed": 9, "left out": 1}
    with pytest.raises(CheckpointError, match=r"no name begins with 'nett\.'; the names are net\."):
        load_state(path, strip_prefix="nett")


def test_two_prefixes_that_fit_are_ambiguous(tmp_path):
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(1))
    model.a = nn.Module()
    model.a.w = nn.Parameter(torch.ones(1))
    path = save({"a.a.w": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"(?s)unexpected.*The names begin with a\. \(1\)"):
        load_state(path, model=model)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_dtypes_are_kept(tmp_path, dtype, suffix):
    state = {"w": torch.arange(6.0).reshape(2, 3).to(dtype), "n": torch.tensor(3)}
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    found = load_state(path)
    assert_same({"w": found["w"], "n": found["n"]}, state)
    assert describe(path)["dtypes"] == {str(dtype).removeprefix("torch."): 1, "int64": 1}


def test_ties_are_kept(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    place = save_checkpoint(model, tmp_path, step=0)
    found = place.load(model=model)
    assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()
    assert describe(place.path)["weights"] == 4 + 2 + 2
    without = {n: t for n, t in model.state_dict().items() if n != "1.weight"}
    save_file(without, tmp_path / "a.safetensors")
    assert_same(load_state(tmp_path / "a.safetensors", model=model), model.state_dict())


def trainer(folder, state, **options):
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", **options)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    torch.save(slice(1), folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")
    return folder


def test_trainer_folder(tmp_path, state):
    folder = trainer(tmp_path / "checkpoint-500", state, metadata={"format": "pt"})
    assert_same(load_state(folder, model=network(1)), state)
    about = describe(folder)
    assert about["format"] == "safetensors"
    assert about["step"] == 500
    assert about["tensors"] == 9
    assert about["weights"] == 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2


def test_folder_with_several_weights(tmp_path, state):
    folder = trainer(tmp_path / "a", state)
    save_file(state, folder / "model_1.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors, model_1.safetensors"):
        load_state(folder)


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected a folder with.*found config.json"):
        load_state(tmp_path)


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request, tmp_path, state):
    suffix = request.param
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    write = save_file if suffix == "safetensors" else torch.save
    weight_map = {}
    for number in (1, 2):
        shard = f"{stem}-0000{number}-of-00002.{suffix}"
        part = {name: state[name] for name in list(state)[number - 1 :: 2]}
        write(part, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards(sharded, state):
    for path in (sharded.parent, sharded):
        assert_same(load_state(path, model=network(1)), state)
    assert describe(sharded.parent)["sha256"] == sha256(sharded)


def test_lost_shard(sharded):
    lost = next(sharded.parent.glob("*-00002-of-*"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"not in the folder: {lost.name}"):
        load_state(sharded.parent)
    sharded.unlink()
    with pytest.raises(CheckpointError, match="the index of its shards"):
        load_state(sharded.parent)


def test_cut_shard(sharded):
    shard = next(sharded.parent.glob("*-00002-of-*"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"{shard.name} .*(ends early|cannot be read)"):
        load_state(sharded.parent)


def test_shard_and_index_disagree(sharded):
    index = json.loads(sharded.read_text())
    index["weight_map"]["2.scale"] = next(iter(index["weight_map"].values()))
    sharded.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"disagree on 2\.scale"):
        load_state(sharded.parent)


def test_index_cannot_point_elsewhere(tmp_path, state):
    save_file(state, tmp_path / "outside.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "../outside.safetensors")}))
    with pytest.raises(CheckpointError, match=r"not in the folder: ../outside.safetensors"):
        load_state(index.parent)


# torch.distributed.checkpoint


def save_distributed(tree, folder):
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tree, checkpoint_id=folder, no_dist=True)
    return folder


def test_distributed(tmp_path, state, adam):
    tree = {"model": state, "optim": adam, "epoch": 3}
    folder = save_distributed(tree, tmp_path / "step-40")
    assert_same(load_state(folder), state)
    assert_same(load_state(folder, key="model", model=network(1)), state)
    about = describe(folder)
    assert (about["format"], about["key"], about["step"]) == ("distributed", "model", 40)
    assert_same(load_state(save_distributed(state, tmp_path / "flat")), state)


def test_distributed_with_two_candidates(tmp_path, state):
    folder = save_distributed({"model": state, "ema": state}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="model: 9 tensors"):
        load_state(folder)
    assert_same(load_state(folder, key="ema"), state)


def test_two_places_of_one_name_are_ambiguous(tmp_path, state):
    path = save({"a": {"b": state}, "a.b": network(1).state_dict()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"(?s)a\.b: 9 tensors.*a\.b: 9 tensors"):
        load_state(path, key="a.b")


def test_distributed_pieces_are_joined(tmp_path):
    """A tensor of two ranks, as a fully sharded save leaves it."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    whole = torch.arange(12.0).reshape(4, 3)
    folder = save_distributed({"top": whole[:3], "end": whole[3:]}, tmp_path / "a")
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    top, end = (metadata.state_dict_metadata.pop(name) for name in ("top", "end"))
    stored = metadata.storage_data
    stored[MetadataIndex("w", (0, 0))] = stored.pop(MetadataIndex("top", (0, 0)))
    stored[MetadataIndex("w", (3, 0))] = stored.pop(MetadataIndex("end", (0, 0)))
    top.size = torch.Size((4, 3))
    top.chunks.append(ChunkStorageMetadata(torch.Size((3, 0)), end.size))
    metadata.state_dict_metadata["w"] = top
    metadata.planner_data = {"w": ("w",)}
    path.write_bytes(pickle.dumps(metadata))
    assert_same(load_state(folder), {"w": whole})
    top.chunks.pop()
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="the pieces of w have 9 values, expected 12"):
        load_state(folder)


def test_distributed_faults(tmp_path, state):
    folder = save_distributed({"model": state}, tmp_path / "a")
    (shard,) = folder.glob("*.distcp")
    data = shard.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=f"{shard.name}.*ends early"):
            load_state(folder)
    place = data.index(state["0.weight"].numpy().tobytes())
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(CheckpointError, match=rf"{shard.name} .* fails its checksum"):
        load_state(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}, which holds .* not in the folder"):
        load_state(folder)
    metadata = folder / ".metadata"
    for cut in (0, 1, 100):
        metadata.write_bytes(metadata.read_bytes()[:cut])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_state(folder)


def test_malicious_metadata(tmp_path, state):
    folder = save_distributed({"model": state}, tmp_path / "a")
    (folder / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    with pytest.raises(CheckpointError, match=r"wants to call posix.system"):
        load_state(folder)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "name",
    ["os.system", "torch.hub.load", "torch.load", "torch.distributed.checkpoint.metadata.os"],
)
def test_metadata_calls_nothing_else(tmp_path, name):
    module, _, function = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{function}\n.".encode())
    with pytest.raises(CheckpointError, match=f"wants to call {name}"):
        load_state(tmp_path)


def test_malicious_bytes_in_a_distributed_file(tmp_path, state):
    """What is no tensor is not even opened (torch reads it with an unrestricted pickle)."""
    tree = {"model": state, "extra": Touch(tmp_path / "touched")}
    assert_same(load_state(save_distributed(tree, tmp_path / "a")), state)
    assert not (tmp_path / "touched").exists()


def test_part_of_one_process(tmp_path):
    from torch.distributed.tensor import DTensor, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        part = DTensor.from_local(torch.ones(2, 2), mesh)
        path = save({"w": part}, tmp_path / "rank0.pt")
        with pytest.raises(CheckpointError, match="part of one process"):
            save_checkpoint({"w": part}, tmp_path, step=0)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(CheckpointError, match=r"part of one process.*full_state_dict=True"):
        load_state(path)


# Faults


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, state, zipped):
    path = save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for cut in (1, 3, 10, 100, len(data) // 2, len(data) * 9 // 10, len(data) - 1):
        path.write_bytes(data[:cut])
        found = "ends early" if zipped and cut > 3 else "cannot be read|begins|wants to call"
        with pytest.raises(CheckpointError, match=rf"(?s)a\.pt \({cut:,} bytes\).*({found})"):
            load_state(path)


def test_truncated_safetensors(tmp_path, state):
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    data = path.read_bytes()
    for cut in (4, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_state(path)


def test_empty_text_and_other_files(tmp_path):
    path = tmp_path / "a.pt"
    path.touch()
    with pytest.raises(CheckpointError, match=r"a\.pt \(0 bytes\): the file is empty"):
        load_state(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(CheckpointError, match=r"text file \(it begins 'version.*git lfs pull"):
        load_state(path)
    path.write_bytes(b"\x00\x01\x02\x03" * 20)
    with pytest.raises(CheckpointError, match="begins with"):
        load_state(path)
    np.savez(tmp_path / "b.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match=r"did not write .*it holds a\.npy"):
        load_state(tmp_path / "b.npz")
    with path.open("wb") as file:
        pickle.dump({"a": 1}, file)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript.*Save model.state_dict"):
        load_state(tmp_path / "a.pt")


def test_missing_file(tmp_path, state):
    save(state, tmp_path / "model_12.pt")
    with pytest.raises(CheckpointError, match=r"model_13.pt: does not exist.*model_12.pt"):
        load_state(tmp_path / "model_13.pt")
    with pytest.raises(CheckpointError, match="nor does the folder"):
        load_state(tmp_path / "no" / "model_13.pt")
    for function in (sha256, describe, checkpoints):
        with pytest.raises(CheckpointError, match="does not exist"):
            function(tmp_path / "model_13.pt")


def test_flipped_bits_are_refused_or_harmless(tmp_path):
    state = {"a": torch.randn(8), "b": torch.randn(3, 2)}
    path = save({"model": state, "epoch": 3}, tmp_path / "a.pt")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        table = archive.start_dir
    everywhere = random.Random(0).sample(range(len(data) * 8), 300)
    refused = 0
    for place in {*everywhere, *range(table * 8, len(data) * 8, 11), *marks(data, table)}:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = load_state(path, allow_nonfinite=True)
        except CheckpointError:
            refused += 1
        else:
            assert_same(found, state)
    assert refused > 300


def test_zip_packed_again_with_its_folders(tmp_path, state):
    path = save(state, tmp_path / "a.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        new.mkdir("a")
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(load_state(tmp_path / "b.pt"), state)


def marks(data, table):
    """The bit of every entry that says it is a folder, for which torch reads nothing."""
    place = data.find(b"PK\x01\x02", table)
    while place >= 0:
        yield (place + 38) * 8 + 4
        place = data.find(b"PK\x01\x02", place + 1)


def test_flipped_weight_is_named(tmp_path, state):
    path = save(state, tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    data[data.index(state["0.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a/data/0 fails its checksum"):
        load_state(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle(tmp_path, state, zipped, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tree = {"model": state, "extra": Touch(tmp_path / "touched")}
    path = save(tree, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix.system.*Nothing of it was run"):
        load_state(path)
    path.write_bytes(pickle.dumps(tree["extra"], protocol=2))
    with pytest.raises(CheckpointError, match=r"posix.system"):
        load_state(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_module(tmp_path, zipped):
    path = save(network(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"(?s)Sequential.*whole pickled model.*import torch"):
        load_state(path)


@pytest.mark.parametrize("extra", [collections.defaultdict(list, a=[1]), slice(1, 2), nn.ReLU])
def test_other_objects_are_refused(tmp_path, state, extra):
    path = save({"state_dict": state, "extra": extra}, tmp_path / "a.pt")
    name = getattr(extra, "__name__", type(extra).__name__)
    with pytest.raises(CheckpointError, match=rf"(?s)wants to call .*{name}.*weights_only=False"):
        load_state(path)


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], {}, {"a": 1}, {"a": {}}, 3])
def test_no_state_within(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"expected one mapping of names to tensors, found"):
        load_state(save(value, tmp_path / "a.pt"))


def test_tensors_without_values(tmp_path):
    path = save(nn.Linear(2, 2, device="meta").state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="weight is on meta"):
        load_state(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2],
)
def test_nonfinite(tmp_path, state, value, dtype):
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    state["2.bias"] = torch.tensor([0.0, value]).to(dtype)
    path = save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"infinite values: 2.bias\..*allow_nonfinite=True"):
        load_state(path)
    assert_same(load_state(path, allow_nonfinite=True), state)
    assert describe(path)["nonfinite"] == ["2.bias"]


def test_largest_values_and_empty_tensors_are_finite(tmp_path):
    largest = torch.finfo(torch.float32).max
    state = {"w": torch.tensor([largest, largest, -largest]), "none": torch.ones(0, 3)}
    assert_same(load_state(save(state, tmp_path / "a.pt")), state)


def test_model_that_does_not_fit(tmp_path, state):
    given = {name: tensor for name, tensor in state.items() if name != "2.bias"}
    path = save(given | {"2.biases": torch.ones(2), "0.weight": torch.ones(4, 2)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"missing \(1\): 2.bias \(closest: 2.bias") as error:
        load_state(path, model=network())
    assert str(path) in str(error.value)
    assert "unexpected (1): 2.biases (closest: 2.bias)" in str(error.value)
    assert "0.weight expected (4, 3), found (4, 2)" in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)


def test_allow_missing(tmp_path, state):
    path = save({n: t for n, t in state.items() if not n.startswith("2.")}, tmp_path / "a.pt")
    model = network(1)
    found = load_state(path, model=model, allow_missing=["2.*"])
    assert_same(load_state(path, model=model, allow_missing="2.*"), found)
    with pytest.raises(CheckpointError, match=r"missing \(1\): 2.bias"):
        load_state(path, model=model, allow_missing="2.w*")
    assert torch.equal(found["2.weight"], model[2].weight)
    assert torch.equal(found["0.weight"], state["0.weight"])


def test_file_that_grows_while_read(tmp_path, state, monkeypatch):
    path = save(state, tmp_path / "a.pt")
    load = torch.load

    def load_while_writing(*args, **options):
        with path.open("ab") as file:
            file.write(b"\0")
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", load_while_writing)
    with pytest.raises(CheckpointError, match="still being written"):
        load_state(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupts_pass(tmp_path, state, monkeypatch, error):
    def interrupted(*args, **options):
        raise error

    path = save(state, tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(error):
        load_state(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    "error", [EOFError, KeyError(101), OSError(22, "Invalid argument"), RuntimeError, IndexError]
)
def test_errors_of_readers_are_chained(tmp_path, state, monkeypatch, error):
    def failing(*args, **options):
        raise error

    path = save(state, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(CheckpointError, match=r"a\.pt .*cannot be read") as refused:
        load_state(path)
    assert isinstance(refused.value.__cause__, Exception)


def test_threads(tmp_path, state):
    """The list of allowed classes belongs to the process; loads at once must not undo it."""
    path = save({"model": state, "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    errors = []

    def load():
        try:
            for _ in range(20):
                load_state(path)
        except CheckpointError as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(torch.serialization.get_safe_globals()) == before


# Folders of checkpoints


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def found(folder, **options):
    return [(c.path.relative_to(folder).as_posix(), c.step) for c in checkpoints(folder, **options)]


def test_own_run(tmp_path, state):
    for step in (20, 3, 100):
        save_checkpoint(state, tmp_path, step=step)
    touch(tmp_path, ".step-00000007.pt.abc.tmp", "plain.json", "step-00000008.pt.tmp")
    assert [c.step for c in checkpoints(tmp_path)] == [3, 20, 100]
    assert_same(checkpoints(str(tmp_path))[0].load(), state)


def test_the_module_is_also_the_function(tmp_path, state):
    place = save_checkpoint(state, tmp_path, step=3)
    assert landscape.checkpoints(tmp_path) == [place]
    assert landscape.checkpoints.checkpoints is checkpoints


def test_key_of_a_run(tmp_path, state):
    save({"model": state, "ema": network(1).state_dict()}, tmp_path / "model_1.pt")
    (place,) = checkpoints(tmp_path, key="ema")
    assert place == Checkpoint(tmp_path / "model_1.pt", 1, "ema")
    assert_same(place.load(), network(1).state_dict())
    assert_same(place.load(key="model"), state)


@pytest.mark.parametrize(
    "names",
    [
        ["epoch=1-step=90.ckpt", "epoch=3-step=1200.ckpt"],
        ["epoch=1-step=90-val_loss=0.31.ckpt", "epoch=1-step=1200-val_loss=0.12.ckpt"],
        ["model_90.pth", "model_1200.pth"],
        ["90.pt", "1200.pt"],
        ["resnet20_epoch_90.pth.tar", "resnet20_epoch_1200.pth.tar"],
        ["ckpt90.safetensors", "ckpt1200.safetensors"],
        ["checkpoint_90.bin", "checkpoint_1200.bin"],
        ["iter_0000090.pt", "iter_0001200.pt"],
        ["epoch_1_step_90.pt", "epoch_1_step_1200.pt"],
        ["step-90/.metadata", "step-1200/.metadata"],
        ["checkpoint-90/model.safetensors", "checkpoint-1200/model.safetensors"],
        ["90/pytorch_model.bin", "1200/pytorch_model.bin"],
        ["checkpoint-90/config.json", "checkpoint-1200/model.safetensors"],
    ],
)
def test_names_of_runs(tmp_path, names):
    touch(tmp_path, *names, "config.json", "tmp-checkpoint-3/model.safetensors", ".hidden_7.pt")
    expected = [
        (name.partition("/")[0], step) for name, step in zip(names, (90, 1200), strict=True)
    ]
    assert found(tmp_path) == expected


def test_lightning_last(tmp_path):
    names = ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"]
    touch(tmp_path, *names, "last.ckpt", "last-v1.ckpt", "last-epoch=1-step=20.ckpt")
    assert found(tmp_path) == [(names[0], 10), (names[1], 20)]
    touch(tmp_path, "last-epoch=2-step=30.ckpt")
    assert found(tmp_path)[-1] == ("last-epoch=2-step=30.ckpt", 30)


def test_trainer_run_with_final_model(tmp_path):
    touch(tmp_path, "checkpoint-9/model.safetensors", "model.safetensors", "training_args.bin")
    assert found(tmp_path) == [("checkpoint-9", 9)]


def test_pattern(tmp_path):
    touch(tmp_path, "model_2_of_9.pth", "model_1_of_9.pth", "best.pth", "optimizer_1.pth")
    with pytest.raises(CheckpointError, match=r"(?s)best.pth.*\(\?P<step>\\d\+\)"):
        checkpoints(tmp_path)
    expected = [("model_1_of_9.pth", 1), ("model_2_of_9.pth", 2)]
    assert found(tmp_path, pattern=r"model_(?P<step>\d+)_of_9\.pth") == expected
    assert found(tmp_path, pattern="optimizer_*.pth") == [("optimizer_1.pth", 1)]
    touch(tmp_path, "run/5/weights.pt", "run/40/weights.pt")
    expected = [("run/5/weights.pt", 5), ("run/40/weights.pt", 40)]
    assert found(tmp_path, pattern=r"run/(?P<step>\d+)/weights\.pt") == expected


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a_1.pt", "b_1.pt"], {}, r"have step 1: a_1.pt, b_1.pt"),
        (["epoch=1-step=5.ckpt", "epoch=1-step=5-v1.ckpt"], {}, "have step 5"),
        (["best.pt", "model_1.pt"], {}, r"each of best.pt, model_1.pt"),
        (["a_1_2.pt", "a_1_3.pt"], {}, r"no rule reads a step"),
        (["notes.txt"], {}, r"with a step in its name; found notes.txt"),
        (["last.ckpt"], {}, "found last.ckpt"),
        ([], {}, "found nothing"),
        (["a_1.pt"], {"pattern": r"b_(?P<step>\d+)\.pt"}, r"nothing here matches .*found a_1.pt"),
        (["a_1.pt"], {"pattern": "b*.pt"}, "nothing here matches 'b"),
        (["a_x.pt"], {"pattern": r"a_(?P<step>\w+)\.pt"}, "pattern .*invalid literal"),
        (["a_1.pt"], {"pattern": r"a_(?P<step>\d+\.pt"}, "pattern .*unterminated"),
    ],
)
def test_folders_refused(tmp_path, names, options, message):
    with pytest.raises(CheckpointError, match=f"(?s){message}.*pattern"):
        checkpoints(touch(tmp_path, *names), **options)


def test_file_is_no_folder(tmp_path):
    touch(tmp_path, "a_1.pt")
    with pytest.raises(CheckpointError, match="load_state reads a single file"):
        checkpoints(tmp_path / "a_1.pt")


# Saving


def test_save_and_load(tmp_path, state):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    place = save_checkpoint(network_like(state), tmp_path / "new" / "run", step=120)
    assert place == Checkpoint(tmp_path / "new" / "run" / "step-00000120.pt", 120)
    assert list(place.path.parent.iterdir()) == [place.path]
    assert_same(place.load(), state)
    assert_same(torch.load(place.path, weights_only=True), state)
    describe(place.path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def network_like(state):
    """A model with these values, made without random numbers."""
    with torch.device("meta"):
        rng = torch.get_rng_state()
        model = network()
        torch.set_rng_state(rng)
    model.load_state_dict(state, assign=True)
    return model


def test_save_takes_no_more_than_the_state(tmp_path):
    matrix = torch.randn(1000, 100)
    place = save_checkpoint({"a": matrix[3], "b": matrix[:3, :2].T}, tmp_path, step=np.int64(0))
    assert_same(place.load(), {"a": matrix[3], "b": matrix[:3, :2].T.contiguous()})
    assert place.path.stat().st_size < 4000


def test_negative_step(tmp_path, state):
    with pytest.raises(ValueError, match="count of training steps, got -1"):
        save_checkpoint(state, tmp_path, step=-1)


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (os, "fsync"), (torch, "save")])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_leaves_the_old_file(tmp_path, state, monkeypatch, module, name, error):
    place = save_checkpoint(state, tmp_path, step=1)
    before = place.path.read_bytes()

    def fail(value, *args):
        if hasattr(args[0] if args else None, "write"):
            args[0].write(b"half")
        raise error

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(type(error)):
        save_checkpoint(network(1), tmp_path, step=1)
    assert place.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place.path]


def test_save_synchronises_file_then_folder(tmp_path, state, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append(str(pathlib.Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_checkpoint(state, tmp_path, step=1)
    assert calls[0].endswith(".tmp")
    assert calls[1:] == ["replace", str(tmp_path)]


# Digests


def test_sha256(tmp_path, state):
    path = save(state, tmp_path / "a.pt")
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = trainer(tmp_path / "checkpoint-1", state)
    before = sha256(folder)
    (folder / "optimizer.pt").write_bytes(b"other")
    assert sha256(folder) == before
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert sha256(folder) != before


def test_describe(tmp_path, state):
    path = save({"model": prefixed(state, "module."), "epoch": 1}, tmp_path / "model_7.pt")
    about = describe(path)
    assert json.loads(json.dumps(about)) == {
        "path": str(path),
        "format": "zip",
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "key": "model",
        "renamed": {"module. removed": 9},
        "tensors": 9,
        "weights": 34,
        "dtypes": {"float32": 8, "int64": 1},
        "step": 7,
        "nonfinite": [],
    }
