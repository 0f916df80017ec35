"""RAM's encoder: the numbers of the original, the official names, and clear errors for wrong files."""

import json

import pytest
import torch
from ram_toys import KEYS, SWIN, swin_config, swin_input, swin_state, tiny_ram_state
from torch.nn.functional import interpolate

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.ram import (
    RAMConfig,
    RAMEncoder,
    encoder_from_state,
    extract_ram_encoder,
    load_ram_encoder,
    save_ram_encoder,
    to_timm,
)


@pytest.fixture(scope="module")
def encoder():
    return encoder_from_state(swin_state("b"), swin_config("b")).requires_grad_(False)


@pytest.fixture
def official(tmp_path):
    """A function that writes a tiny checkpoint in the official layout and returns its path."""

    def write(state):
        torch.save({"model": state, "epoch": 3}, tmp_path / "ram.pth")
        return tmp_path / "ram.pth"

    return write


# The network


@pytest.mark.parametrize("case", ["a", "b"])  # a: shifted windows; b: the window shrinks in the last stage
def test_the_encoder_gives_the_numbers_of_the_original(case):
    net = encoder_from_state(swin_state(case), swin_config(case))
    with torch.no_grad():
        features, tokens = net.features(swin_input(case)), net.tokens(swin_input(case))
    torch.testing.assert_close(features, torch.from_numpy(SWIN[f"{case}_features"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(tokens, torch.from_numpy(SWIN[f"{case}_image_embeds"]), atol=2e-5, rtol=0)


def test_the_first_token_is_the_average_of_the_others(encoder):
    tokens = encoder(torch.rand(1, 3, 96, 96))
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1))


def test_training_mode_changes_nothing(encoder):
    image = torch.rand(1, 3, 96, 96)
    expected = encoder(image)
    torch.testing.assert_close(encoder.train()(image), expected)
    encoder.eval()


def test_full_size_has_the_official_names_and_shapes():
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in RAMEncoder(RAMConfig()).state_dict().items()}
    theirs = to_timm({name: torch.empty(shape, device="meta") for name, shape in KEYS["encoder"].items()})
    assert ours == {name: list(tensor.shape) for name, tensor in theirs.items()}
    assert len(ours) == 327 + 2


def test_full_size_makes_145_tokens_of_512():
    assert (RAMConfig().tokens, RAMConfig().projection, RAMConfig().width) == (145, 512, 1536)


# The image before the network


def test_an_image_of_any_size_is_resized_with_antialiasing_and_normalised(encoder):
    image = torch.rand(2, 3, 200, 130)
    resized = interpolate(image, (96, 96), mode="bilinear", antialias=True)
    x = (resized - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(encoder(image), encoder.tokens(x))


def test_antialiasing_can_be_switched_off():
    aliased = encoder_from_state(swin_state("b"), swin_config("b").model_copy(update={"antialias": False}))
    image = torch.rand(1, 3, 200, 130)
    with torch.no_grad():
        expected = aliased(interpolate(image, (96, 96), mode="bilinear", antialias=False))
        torch.testing.assert_close(aliased(image), expected)


def test_half_precision_weights_give_half_precision_tokens_close_to_float32(encoder):
    image = torch.rand(1, 3, 96, 96)
    half = encoder_from_state(swin_state("b"), swin_config("b")).bfloat16()(image)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), encoder(image), atol=0.1, rtol=0.1)


# Files


def test_the_official_file_loads_and_its_other_parts_are_ignored(official, encoder):
    loaded = load_ram_encoder(official(tiny_ram_state()), swin_config("b"))
    torch.testing.assert_close(loaded.state_dict(), encoder.state_dict())


def test_loaded_buffers_are_computed_not_left_empty(official):
    loaded = load_ram_encoder(official(swin_state("a")), swin_config("a"))
    with torch.no_grad():
        tokens = loaded.tokens(swin_input("a"))
    torch.testing.assert_close(tokens, torch.from_numpy(SWIN["a_image_embeds"]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["visual_encoder.norm.bias", "visual_encoder.layers.1.downsample.norm.weight"])
def test_a_missing_tensor_is_an_error_that_names_it(official, name):
    state = tiny_ram_state()
    del state[name]
    with pytest.raises(ValueError, match=f"1 missing: {next(iter(to_timm({name: torch.ones(1)})))}"):
        load_ram_encoder(official(state), swin_config("b"))


def test_an_unknown_tensor_is_an_error_that_names_it(official):
    state = tiny_ram_state() | {"visual_encoder.absolute_pos_embed": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 unexpected: swin\.absolute_pos_embed"):
        load_ram_encoder(official(state), swin_config("b"))


def test_another_shape_is_an_error_that_says_both(official):
    state = tiny_ram_state() | {"image_proj.weight": torch.zeros(32, 96)}
    with pytest.raises(ValueError, match=r"image_proj\.weight \(32, 96\) instead of \(32, 192\)"):
        load_ram_encoder(official(state), swin_config("b"))


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ram_swin_large_14m\.pth .*Apache-2\.0"):
        load_ram_encoder(tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_file_that_is_no_checkpoint_is_an_error_that_says_so(tmp_path, content):
    (tmp_path / "ram.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"ram\.pth is not a readable PyTorch checkpoint"):
        load_ram_encoder(tmp_path / "ram.pth")


def test_the_extracted_folder_gives_the_same_encoder_and_knows_its_sizes(tmp_path, encoder):
    save_ram_encoder(encoder, tmp_path / "small")
    loaded = load_ram_encoder(tmp_path / "small")
    torch.testing.assert_close(loaded.state_dict(), encoder.state_dict())
    assert loaded.config == encoder.config
    assert sorted(p.name for p in (tmp_path / "small").iterdir()) == ["config.json", "encoder.safetensors"]


def test_an_extracted_file_may_be_named_itself(tmp_path, encoder):
    save_ram_encoder(encoder, tmp_path)
    assert load_ram_encoder(tmp_path / "encoder.safetensors").config == encoder.config


def test_extract_reads_the_official_file_once(official, tmp_path, encoder):
    extract_ram_encoder(official(tiny_ram_state()), tmp_path / "small", swin_config("b"))
    torch.testing.assert_close(load_ram_encoder(tmp_path / "small").state_dict(), encoder.state_dict())


def test_settings_that_disagree_with_the_folder_are_an_error(tmp_path, encoder):
    save_ram_encoder(encoder, tmp_path)
    with pytest.raises(ValueError, match="disagree: image_size 96 against 128"):
        load_ram_encoder(tmp_path, swin_config("b").model_copy(update={"image_size": 128}))


def test_a_folder_without_weights_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match=r"encoder\.safetensors does not exist"):
        load_ram_encoder(tmp_path)


# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depths": [2, 2]}, "must name the same stages"),
        ({"image_size": 100}, "must be a multiple of patch"),
        ({"heads": [6, 12, 24, 50]}, "stage 3: 50 heads do not divide its width 1536"),
    ],
)
def test_impossible_sizes_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(RAMConfig, values)
