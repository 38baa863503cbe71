"""Numbers of the public F1-VLA code (float32, tiny sizes) against ours, and folders of other configurations."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
from f1_vla import parity
from f1_vla.parity_outputs import Sizes, compute_outputs, fixture_batch
from f1_vla.rollout import Sampling

DATA = Path(__file__).resolve().parents[1] / "data" / "f1_parity"
SPEC = DATA / "f1_parity_a.json"


def load_writer():
    spec = importlib.util.spec_from_file_location("fixture_writer", Path(__file__).with_name("fixture_writer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write_fixture = load_writer().write_fixture


def wrong(rows: list[parity.Row]) -> list[parity.Row]:
    return [r for r in rows if not r.ok]


@pytest.mark.parametrize("backend", kernels.available_backends())
def test_every_recorded_tensor_is_reproduced_with_all_additions_on(backend):
    rows = parity.check(SPEC, backend)
    assert wrong(rows) == []
    expected = [n for n, r in json.loads(SPEC.read_text())["tensors"].items() if r["compare"] != "input"]
    if backend == "flex":
        expected = [n for n in expected if ".grad" not in n]
    assert sorted(r.name for r in rows) == sorted(expected)
    # A correct implementation lands well under the tolerance; what lies between is most likely a mistake.
    assert max(r.error for r in rows if ".grad" not in r.name) < 2e-5


@pytest.mark.slow
def test_our_triton_kernels_reproduce_every_recorded_tensor_in_the_interpreter():
    command = [sys.executable, "-m", "f1_vla.parity", str(DATA), "--backend", "triton"]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, cwd=DATA.parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "98 of 98 tensors within tolerance" in done.stdout, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_backend_of_a_gpu_reproduces_every_recorded_tensor():
    for backend in kernels.available_backends("cuda", training=True):
        assert wrong(parity.check(SPEC, backend, "cuda")) == [], backend


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_heads": 2},
        {"kv_heads": 4, "pn": "1_2_3_4_6", "resolutions": 3, "chunk": 5, "actions": 9, "states": 7, "steps": 4},
        {"kv_heads": 1, "pn": "1_2", "resolutions": 1, "kernel": 2, "und": 40, "gen": 24, "head_dim": 16, "layers": 1},
    ],
    ids=["more kv heads", "fewer scales predicted than there are", "one scale of two"],
)
def test_other_configurations_agree_with_the_equations(tmp_path, changes):
    # Odd pictures are resized; the second camera is absent in one sample.
    file = write_fixture(tmp_path, [(20, 31), (37, 13)], [[True, True], [True, False]], **changes)
    rows = parity.check(file)
    assert wrong(rows) == [] and len(rows) == 30


def test_other_configuration_agrees_with_every_backend(tmp_path):
    file = write_fixture(tmp_path, [(20, 31)], [[True, True]], kv_heads=2, pn="1_3_4", resolutions=2, layers=1)
    for backend in kernels.available_backends():
        assert wrong(parity.check(file, backend)) == [], backend


def test_three_cameras_with_the_first_missing_agree_with_the_equations(tmp_path):
    file = write_fixture(tmp_path, [(28, 28), (20, 20), (28, 40)], [[False, True], [True, True], [True, False]])
    data = load_file(file.with_suffix(".safetensors"))
    assert data["out.und_embs"].shape[1] == 3 * 4 + 5
    assert wrong(parity.check(file)) == []


@pytest.mark.slow
def test_ten_scales_agree_with_the_equations(tmp_path):
    scales = "1_2_3_4_5_6_8_10_13_16"
    file = write_fixture(tmp_path, [(28, 28)], [[True]], B=1, pn=scales, resolutions=4, layers=1)
    assert wrong(parity.check(file)) == []


def test_camera_whose_prepared_pixels_sum_to_zero_is_not_in_the_sequence(parity_policy, parity_data):
    grey = parity_data | {"in.image1": torch.full((2, 3, 20, 20), 0.5)}
    assert fixture_batch(parity_policy, grey, Sizes(4, 4)).images.shape[2] == 2  # padding is -1: the sum is not 0
    grey["in.image1"] = torch.full((2, 3, 28, 28), 0.5)
    assert fixture_batch(parity_policy, grey, Sizes(4, 4)).images.shape[2] == 1


def test_sampling_leaves_the_given_noise_alone(parity_policy, parity_data):
    batch, noise = fixture_batch(parity_policy, parity_data, Sizes(4, 4)), parity_data["in.noise"].clone()
    h = parity_policy.initial_memory_state(2)
    with torch.no_grad():
        parity_policy(batch, mode="actions", initial_memory_state=h, noise=noise, sampling=Sampling())
    assert torch.equal(noise, parity_data["in.noise"])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Path:
    """A copy of the fixture that expects a few cheap tensors only."""
    spec, data = json.loads(SPEC.read_text()), load_file(DATA / "f1_parity_a.safetensors")
    kept = {n: r for n, r in spec["tensors"].items() if n.startswith(("in.", "out.tf.", "out.und"))}
    (tmp_path / "b.json").write_text(json.dumps(spec | {"tensors": kept}))
    save_file({n: data[n] for n in kept}, tmp_path / "b.safetensors")
    return tmp_path


def test_command_prints_the_largest_error_of_each_output_and_succeeds(small, capsys):
    assert parity.main([str(small), "--backend", "reference"]) == 0
    out = capsys.readouterr().out
    assert "18 of 18 tensors within tolerance" in out and "out.tf.logits" in out


@pytest.mark.parametrize(
    ("name", "change"), [("out.tf.logits", 2e-4), ("out.tf.grad.und_k0", 1.0), ("out.tf.att_mask", 1)]
)
def test_command_fails_when_a_tensor_is_beyond_its_tolerance(small, capsys, name, change):
    data = load_file(small / "b.safetensors")
    if data[name].dtype == torch.bool:
        data[name][0, 0, 0] ^= True
    else:
        data[name].view(-1)[3] += change
    save_file(data, small / "b.safetensors")
    assert parity.main([str(small)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
    assert [line.split()[0] for line in lines] == [name]


def edit(folder: Path, change) -> None:
    spec = json.loads((folder / "b.json").read_text())
    change(spec)
    (folder / "b.json").write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["state_dict"][0].update(sum=9.0), "differs from the recorded"),
        (lambda s: s["state_dict"][0].update(fill="ones"), "unknown fill rule"),
        (lambda s: s["state_dict"][0].update(shape=[31]), "differs from the recorded"),
        (lambda s: s["state_dict"].pop(0), "missing model.action_in_proj.bias"),
        (lambda s: s["config"].pop("chunk_size"), "no key 'chunk_size'"),
        (lambda s: s["config"]["act_expert_config"].update(num_attention_heads=2), "must agree"),
        (lambda s: s["config"].update(resize_imgs_with_padding=[32, 32]), "differs from the vision tower"),
        (lambda s: s["tensors"].update({"out.new": {"compare": "exact"}}), "lacks out.new"),
    ],
)
def test_command_refuses_a_folder_that_contradicts_itself(small, capsys, change, message):
    edit(small, change)
    assert parity.main([str(small)]) == 4
    assert message in capsys.readouterr().err


def test_command_refuses_an_output_it_does_not_know_a_truncated_file_and_an_empty_folder(small, capsys, tmp_path):
    data = load_file(small / "b.safetensors")
    save_file(data | {"out.new": torch.zeros(1)}, small / "b.safetensors")
    edit(small, lambda s: s["tensors"].update({"out.new": {"compare": "exact"}}))
    assert parity.main([str(small)]) == 4
    assert "cannot compute out.new" in capsys.readouterr().err
    content = (small / "b.safetensors").read_bytes()
    (small / "b.safetensors").write_bytes(content[:-100])
    assert parity.main([str(small)]) == 4
    assert "no readable parity fixture" in capsys.readouterr().err
    assert parity.main([str(tmp_path / "nothing")]) == 4
    assert "no parity fixture there" in capsys.readouterr().err


def test_command_refuses_a_backend_that_cannot_run(small, capsys):
    shutil.copy(small / "b.json", small / "c.json")  # without tensors of its own: not a fixture
    assert parity.main([str(small), "--backend", "fast"]) == 4
    assert "'fast'" in capsys.readouterr().err


def test_outputs_are_computed_without_reading_the_expected_ones(parity_policy, parity_spec, parity_data):
    inputs = {n: t for n, t in parity_data.items() if parity_spec["tensors"][n]["compare"] == "input"}
    out = compute_outputs(parity_policy, parity_spec, inputs, Sizes(4, 4), gradients=False)
    missing = {n for n in set(parity_data) - set(inputs) if ".grad" not in n} - set(out)
    assert missing == set()
