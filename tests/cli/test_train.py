"""`train ...` reaches the trainings, which write where they are told."""

import json

import pytest

PHANTOM = '[data]\npath = "phantom"\n[data.phantom]\ncalibration = 60\naudit = 6\n'


def test_train_generator_then_its_encoder(run, tmp_path):
    generator = (
        "kimg = 0.032\nbatch_size = 8\nz_dim = 8\nw_dim = 8\nchannel_base = 128\nchannel_max = 8\n"
        'snapshot_kimg = 0.032\nfid_embedding = "none"\n'
    )
    status, text = run("train", "generator", config=generator + PHANTOM)
    assert status == 0, text
    drawn = tmp_path / "out" / "generator.safetensors"
    assert drawn.is_file()
    assert json.loads((tmp_path / "out" / "generator.json").read_text())["kimg"] == pytest.approx(0.032)
    encoder = f'generator = "{drawn}"\nsteps = 2\nbatch_size = 4\nwidth = 16\nsnapshot_steps = 2\n'
    status, text = run("train", "encoder", config=encoder + PHANTOM, out="encoder")
    assert status == 0, text
    assert (tmp_path / "encoder" / "encoder.safetensors").is_file()


def test_train_classifier_and_factors(run, tmp_path):
    classifier = (
        'name = "tiny"\n[optimiser]\nsteps = 2\nbatch_size = 8\n[selection]\nevery = 2\nn = 8\n'
        "[evaluation]\nn = 8\nattacked = 4\nsteps = 1\n"
    )
    status, text = run("train", "classifier", config=classifier + PHANTOM)
    assert status == 0, text
    assert (tmp_path / "out" / "tiny.safetensors").is_file()
    factors = "n_evaluation = 10\n[optimiser]\nsteps = 2\nbatch_size = 8\n[selection]\nevery = 2\nn = 10\n"
    status, text = run("train", "factors", config=factors)
    assert status == 0, text
    assert (tmp_path / "out" / "phantom-factors.safetensors").is_file()
