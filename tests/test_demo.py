from numpy.testing import assert_allclose

import landscape
from landscape import demo, results, tables


def test_the_demo_makes_checkpoints_results_and_figures(tmp_path, capsys):
    demo.run(tmp_path / "demo", quiet=True, epochs=4, curve_epochs=5, points=(5, 3))
    steps = [c.step for c in landscape.checkpoints(tmp_path / "demo" / "run-1")]
    assert steps == [0, 1, 2, 4, 8, 16, 23, 46, 69, 92]
    line = results.load(tmp_path / "demo" / "line.h5")
    assert not results.problems(line)
    assert line["loss"].sizes == {"split": 2, "t": 41}
    for name in ("line.pdf", "line.png", "connected.pdf", "connected.png", "layers.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    said = capsys.readouterr().out
    assert tables.barrier_table(line) in said
    assert "wrote line.h5, curve.h5, plane.h5, layers.h5, settled.h5, line.pdf" in said
    found = landscape.barrier(line)["loss"].sel(split="train")
    assert found > 0.3
    assert (line["own_error"].sel(t=[0, 1], split="test") < 0.2).all()
    assert_allclose(line["loss"].sel(t=[0, 1]), line["own_loss"].sel(t=[0, 1]), rtol=0.5)
    curve, plane = (results.load(tmp_path / "demo" / f"{n}.h5") for n in ("curve", "plane"))
    assert landscape.barrier(curve)["loss"].sel(split="train") < 0.7 * found
    assert plane["mark"].values.tolist() == ["seed 0", "seed 1", "bend"]
    assert_allclose(plane["mark_distance"], 0, atol=1e-5)
    assert not results.problems(curve) + results.problems(plane)
    layers, settled = (results.load(tmp_path / "demo" / f"{n}.h5") for n in ("layers", "settled"))
    assert layers["cka"].sizes == {"layer": 7, "other_layer": 7}
    assert settled["step"].values.tolist() == steps
    assert_allclose(settled["cka"].isel(step=-1), 1, rtol=1e-9)
    assert (settled["cka"].sel(layer="head.output", step=0) < 0.6).all()
    assert tables.layers_table(layers) in said
