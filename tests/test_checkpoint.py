"""Weight files: whatever is wrong with one is told in one line that names the file, and no code in it runs."""

import random

import pytest
import torch
from safetensors.torch import save_file

from osdhuman.models.checkpoint import load_strictly, read_checkpoint, read_content, read_safetensors
from osdhuman.models.known_files import seems_to_be

PUBLISHED = "It is published at example.org"
STATE = {f"layers.{i}.weight": torch.arange(6.0).view(3, 2) + i for i in range(4)}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["new format", "format before PyTorch 1.6"])


class Payload:
    """Prints when it is unpickled."""

    def __reduce__(self):
        return print, ("the file's code has run",)


def written(folder, content, zipped=True):
    torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=zipped)
    return folder / "w.pth"


def refusal(path, read=read_checkpoint):
    with pytest.raises(ValueError) as caught:
        read(path, PUBLISHED)
    return str(caught.value)


# Reading


@FORMATS
def test_tensors_are_read_in_both_formats(tmp_path, zipped):
    state = read_checkpoint(written(tmp_path, {"model": STATE, "epoch": 3}, zipped), PUBLISHED)
    torch.testing.assert_close(state, STATE)


def test_the_first_wrapper_that_is_there_is_opened(tmp_path):
    path = written(tmp_path, {"params": STATE})
    torch.testing.assert_close(read_checkpoint(path, PUBLISHED, ("params_ema", "params")), STATE)


def test_tensors_without_names_are_refused(tmp_path):
    assert "w.pth must hold a dictionary of tensors" in refusal(written(tmp_path, {1: torch.zeros(1)}))


# Damage


def mutated(data, seed):
    """`data` cut off, or with some bytes changed, removed or added."""
    rng = random.Random(seed)
    place, count = rng.randrange(len(data)), rng.randrange(1, 64)
    head, rest = data[:place], data[place:]
    new = rng.randbytes(count)
    return rng.choice(
        [head, head + new[:1] + rest[1:], head + new + rest[count:], head + rest[count:], head + new + rest]
    )


def complaint(path):
    """What is wrong with the file; None if it can be read."""
    try:
        read_checkpoint(path, PUBLISHED)
    except ValueError as error:
        return error
    return None


@FORMATS
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, zipped):
    path = written(tmp_path, {"model": STATE, "epoch": 3}, zipped)
    data, complaints = path.read_bytes(), []
    for seed in range(60):
        path.write_bytes(mutated(data, seed))
        complaints.append(complaint(path))
    found = [str(error) for error in complaints if error]
    assert len(found) > 30
    assert not [line for line in found if not line.startswith(f"{path} ") or not line.isprintable()]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    assert "w.pth is not a readable PyTorch checkpoint of tensors: " in refusal(tmp_path / "w.pth")


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"w\.pth does not exist\. It is published at example\.org"):
        read_content(tmp_path / "w.pth", PUBLISHED)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:-8])
    assert "w.safetensors is not a readable safetensors file" in refusal(tmp_path / "w.safetensors", read_safetensors)


# Code in the file


@FORMATS
def test_code_in_a_pickle_is_not_run(tmp_path, capsys, zipped):
    refusal(written(tmp_path, {"model": Payload()}, zipped))
    assert capsys.readouterr().out == ""


@FORMATS
def test_a_refused_pickle_says_what_it_refers_to(tmp_path, zipped):
    message = refusal(written(tmp_path, {"model": Payload()}, zipped))
    assert message.endswith("it refers to print, and loading that could run code. It is published at example.org")


@FORMATS
def test_nobody_is_advised_to_switch_the_protection_off(tmp_path, zipped):
    assert "weights_only" not in refusal(written(tmp_path, {"model": Payload()}, zipped))


# Strict loading


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "the layer: 1 missing: bias. It is published"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "c": torch.zeros(1)}, "1 unexpected: c"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"weight \(2, 4\) instead of \(2, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(state, message):
    with pytest.raises(ValueError, match=message):
        load_strictly(torch.nn.Linear(3, 2), state, "layer", PUBLISHED)


# What a file seems to be


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["visual_encoder.norm.bias"], "RAM or DAPE"),
        (
            ["model.diffusion_model.out.2.weight", "control_model.zero_convs.0.0.weight"],
            "a DiffBIR v1 checkpoint of 2023",
        ),
        (["middle_block.1.patch_embed.proj.weight", "input_blocks.0.0.bias"], "ResShift's or SinSR's network"),
        (["feature_extractor.residual_group.a"], "the prompt network of HAODiff"),
        (["RRDB_trunk.0.RDB1.conv1.weight"], "BSRNet"),
        (["body.0.rdb1.conv1.weight"], "an ESRGAN network"),
        (["first", "second", "third", "fourth"], "something unknown (first, second, third, ...)"),
        ([], "an empty checkpoint"),
    ],
)
def test_a_file_is_known_by_its_names(names, what):
    assert seems_to_be(dict.fromkeys(names, torch.zeros(1))).startswith(what)


def test_sizes_are_told_where_the_names_tell_them():
    state = {
        "conv_in.weight": torch.zeros(320, 4, 3, 3),
        "down_blocks.0.resnets.0.time_emb_proj.bias": torch.zeros(1),
        "down_blocks.0.attentions.0.attn2.to_k.weight": torch.zeros(320, 1024),
    }
    assert seems_to_be(state) == "a plain UNet (4 to 320 channels, text width 1024)"
