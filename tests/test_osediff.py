"""OSEDiff's published layout on a toy base: merged weights are peft's three adapters; names, sizes, seeds, prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from ram_toys import TINY_TAGGING, swin_config, tiny_dape_state, tiny_ram_state
from toys import TOKENS, WIDTH, toy_base, toy_unet, toy_vae, with_adapters_at_work, write_toy_base
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from osdhuman.models.base import SD21_UNET, SD21_VAE, Base
from osdhuman.models.diffusion import alphas_cumprod
from osdhuman.models.lora import unet_lora_layers, vae_lora_layers
from osdhuman.models.prompts import PromptConfig
from osdhuman.restorers import load_restorer
from osdhuman.restorers.osediff import LISTS, build_osediff, read_osediff

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
GOLDEN = Path(__file__).parent / "golden"
NULL = {"kind": "null"}


def adapter_of(layer):
    """OSEDiff's three groups: down to the left, up to the right, the mid block between."""
    if "down_blocks" in layer or "conv_in" in layer:
        return "default_encoder"
    return "default_decoder" if "up_blocks" in layer or "conv_out" in layer else "default_others"


def adapted(network, layers, grouped):
    """`network` with peft's adapters as OSEDiff makes them: alpha 8 left at its default, all active, B at work."""
    for adapter in LISTS if grouped else ("default_encoder",):
        mine = [layer for layer in layers if not grouped or adapter_of(layer) == adapter]
        network.add_adapter(LoraConfig(r=4, init_lora_weights="gaussian", target_modules=mine), adapter_name=adapter)
    network.set_adapters(list(LISTS) if grouped else ["default_encoder"])
    return with_adapters_at_work(network)


def official(unet, vae):
    """What OSEDiff's training script saves of two adapted networks."""
    unet_layers = [name.partition(".lora_A")[0] for name, _ in unet.named_parameters() if ".lora_A" in name]
    vae_layers = [name.partition(".lora_A")[0] for name, _ in vae.named_parameters() if ".lora_A" in name]
    return {
        **{LISTS[a]: [layer for layer in unet_layers if adapter_of(layer) == a] for a in LISTS},
        "vae_lora_encoder_modules": vae_layers + vae_layers[:3],  # with repeats, as published
        "rank_unet": 4,
        "rank_vae": 4,
        "state_dict_unet": {n: t for n, t in unet.state_dict().items() if "lora" in n or "conv_in" in n},
        "state_dict_vae": {n: t for n, t in vae.state_dict().items() if "lora" in n},
    }


def trained(folder):
    """A toy base's UNet and VAE with adapters, the UNet's first layer trained too."""
    base = toy_base(folder)
    unet, vae = toy_unet(), toy_vae()
    unet.load_state_dict(base.unet.state_dict())
    vae.load_state_dict(base.vae.state_dict())
    unet, vae = adapted(unet, unet_lora_layers(unet), True), adapted(vae, vae_lora_layers(vae), False)
    with torch.no_grad():
        unet.conv_in.base_layer.weight += 0.1
        unet.conv_in.base_layer.bias -= 0.1
    return unet.eval(), vae.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def peft_networks(folder):
    return trained(folder)


@pytest.fixture(scope="module")
def weights(folder, peft_networks):
    path = folder / "osediff.pkl"
    torch.save(official(*peft_networks), path)
    return path


@pytest.fixture(scope="module")
def restorer(folder, weights):
    settings = {"base": str(folder), "weights": str(weights), "prompt": NULL, "process_size": 64, "device": "cpu"}
    return load_restorer("osediff", **settings)


def image(height=64, width=64):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


# the weights


@torch.no_grad()
def test_the_merged_unet_is_pefts_with_three_adapters_active(restorer, peft_networks):
    z, t, prompt = torch.randn(2, 6, 16, 16), torch.tensor(999), torch.randn(2, TOKENS, WIDTH)
    expected = peft_networks[0](z, t, encoder_hidden_states=prompt).sample
    merged = restorer.generator.unet(z, t, encoder_hidden_states=prompt).sample
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_merged_vae_encoder_is_pefts(restorer, peft_networks):
    x = image() * 2 - 1
    expected = peft_networks[1].encode(x).latent_dist.parameters
    torch.testing.assert_close(restorer.generator.vae.encode(x).latent_dist.parameters, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_adapter_counts(restorer, peft_networks):
    z, t, prompt = torch.randn(1, 6, 16, 16), torch.tensor(999), torch.randn(1, TOKENS, WIDTH)
    unet = peft_networks[0]
    merged = restorer.generator.unet(z, t, encoder_hidden_states=prompt).sample
    for adapter in LISTS:
        unet.set_adapters([name for name in LISTS if name != adapter])
        assert (unet(z, t, encoder_hidden_states=prompt).sample - merged).abs().max() > 1e-3
    unet.set_adapters(list(LISTS))


def test_the_first_layer_is_the_files_not_the_bases(restorer, peft_networks):
    assert torch.equal(restorer.generator.unet.conv_in.bias, peft_networks[0].conv_in.base_layer.bias)


def published_content():
    """A dictionary of the published names and shapes, without values to speak of."""
    keys = json.loads((GOLDEN / "osediff_keys.json").read_text())

    def tensors(part):
        return {
            f"{layer}.lora_{side}.{adapter}.weight": torch.zeros(1).expand(shape)
            for adapter, layers in keys[part].items()
            for layer, shapes in layers.items()
            for side, shape in zip("AB", shapes, strict=True)
        }

    first = {"conv_in.base_layer.weight": torch.zeros(320, 4, 3, 3), "conv_in.base_layer.bias": torch.zeros(320)}
    return {
        **{name: list(keys["unet"][adapter]) for adapter, name in LISTS.items()},
        "vae_lora_encoder_modules": list(keys["vae"]["default_encoder"]),
        "rank_unet": 4,
        "rank_vae": 4,
        "state_dict_unet": tensors("unet") | first,
        "state_dict_vae": tensors("vae"),
    }


def test_the_published_names_and_shapes_fit_stable_diffusion_21(tmp_path):
    torch.save(published_content(), tmp_path / "osediff.pkl")
    content = read_osediff(tmp_path / "osediff.pkl")
    assert (len(content["state_dict_unet"]), len(content["state_dict_vae"])) == (518, 64)
    for part in ("state_dict_unet", "state_dict_vae"):
        content[part] = {name: tensor.to("meta") for name, tensor in content[part].items()}
    with torch.device("meta"):
        unet, vae, null = UNet2DConditionModel(**SD21_UNET), AutoencoderKL(**SD21_VAE), torch.zeros(1, 77, 1024)
    build_osediff(content, Base(None, "", unet, vae, alphas_cumprod(), null_prompt=null), PromptConfig(**NULL))


# the step


def test_eq_2_is_taken_at_999_as_osediff_takes_it(restorer):
    golden = {name: torch.from_numpy(a) for name, a in np.load(GOLDEN / "osediff_vsd.npz").items()}
    z_hat = restorer.generator.to_z_hat(golden["onestep_z"], golden["onestep_eps"])
    torch.testing.assert_close(z_hat, golden["onestep_x0_t999"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_latent_is_drawn_from_the_posterior(restorer):
    posterior = restorer.generator.vae.encode(image() * 2 - 1).latent_dist
    restorer.generator.seed = 7
    expected = posterior.sample(torch.Generator().manual_seed(7)) * 0.5  # the toy's scaling factor
    torch.testing.assert_close(restorer.generator.encode(image()), expected)
    assert not torch.allclose(expected, posterior.mode() * 0.5)


def test_an_image_depends_on_its_own_seed_alone(restorer):
    lq = torch.cat([image(), image()])
    first, second = restorer.restore(lq, [1, 2])
    assert torch.equal(restorer.restore(image(), [2])[0], second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("size", "upscale", "inside"),
    [
        ((64, 80), 1, (64, 80)),  # as PERSONA: nothing is enlarged
        ((32, 40), 1, (64, 80)),  # the shorter side becomes process_size
        ((24, 30), 2, (64, 80)),  # process_size // upscale, then times upscale
        ((40, 50), 2, (80, 100)),
    ],
)
def test_small_images_are_enlarged_and_come_back_at_their_size(folder, weights, size, upscale, inside):
    settings = {"base": str(folder), "weights": str(weights), "prompt": NULL, "process_size": 64, "upscale": upscale}
    restorer = load_restorer("osediff", **settings, device="cpu")
    assert restorer.enlarged(image(*size)).shape[-2:] == inside
    assert restorer.restore(image(*size), [0]).shape[-2:] == size


def test_the_colour_fix_is_adain_by_default(restorer):
    restored = restorer.restore(image() * 0.2 + 0.4, [0])
    torch.testing.assert_close(restored.mean(dim=(2, 3)), (image() * 0.2 + 0.4).mean(dim=(2, 3)), atol=1e-3, rtol=0)


def test_the_record_has_a_hash_of_each_file_and_counts_what_was_trained(restorer, peft_networks):
    described = restorer.describe()
    assert set(described["weights"]) == {"osediff.pkl", "base"} and described["merged"]
    lora = [p.numel() for network in peft_networks for n, p in network.named_parameters() if ".lora_" in n]
    first = peft_networks[0].conv_in.base_layer
    assert described["trained_parameters"] == sum(lora) + first.weight.numel() + first.bias.numel()


# the prompt


def write_text_encoder(folder):
    """A text encoder of 26 letters and a comma, in place of the stored null prompt."""
    (folder / "null_prompt.safetensors").unlink()
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(c + end for c in "abcdefghijklmnopqrstuvwxyz," for end in ("", "</w>")),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=TOKENS,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_dape_tags_become_the_prompt(tmp_path, weights):
    base = write_text_encoder(write_toy_base(tmp_path / "base"))
    torch.save({"model": tiny_ram_state()}, tmp_path / "ram.pth")
    torch.save(tiny_dape_state(), tmp_path / "DAPE.pth")
    (tmp_path / "tags.txt").write_text("\n".join(f"tag{i}" for i in range(12)))
    (tmp_path / "thresholds.txt").write_text("\n".join(["0.5"] * 12))
    prompt = {
        "kind": "dape",
        "encoder": str(tmp_path / "ram.pth"),
        "ram": swin_config("b").model_dump(),
        "dape": str(tmp_path / "DAPE.pth"),
        "tagging": TINY_TAGGING.model_dump(),
        "tag_list": str(tmp_path / "tags.txt"),
        "tag_thresholds": str(tmp_path / "thresholds.txt"),
        "text": "man",
    }
    restorer = load_restorer("osediff", base=str(base), weights=str(weights), prompt=prompt, process_size=64)
    extractor = restorer.generator.prompt_extractor
    assert all(caption.endswith(", man,") for caption in extractor.captions(image()))
    assert extractor(image()).shape == (1, TOKENS, WIDTH)
    assert isinstance(extractor.text_encoder, CLIPTextModel)  # moves and counts with the extractor
    assert restorer.restore(image(), [0]).shape == image().shape
    assert set(restorer.describe()["weights"]) == {"osediff.pkl", "base", "ram", "dape", "tag_list", "tag_thresholds"}


# what can be wrong


def test_missing_weights_say_where_they_are_published():
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.pkl does not exist. It is preset/models/osediff.pkl of .*cswry/OSEDiff"
    ):
        load_restorer("osediff", weights="nowhere.pkl")


def test_prompts_of_images_are_not_osediffs():
    with pytest.raises(ValueError, match="kind must be dape or null"):
        load_restorer("osediff", prompt={"kind": "hfie"})


class Payload:
    def __reduce__(self):
        return print, ("the file's code has run",)


def test_code_in_the_file_is_not_run(tmp_path, capsys):
    torch.save({"rank_unet": Payload()}, tmp_path / "bad.pkl")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_osediff(tmp_path / "bad.pkl")
    assert capsys.readouterr().out == ""


def changed(weights, path, change):
    content = torch.load(weights)
    change(content)
    torch.save(content, path)
    return path


def test_a_missing_part_is_told_with_the_nearest(weights, tmp_path):
    path = changed(weights, tmp_path / "w.pkl", lambda c: c.update(rank_uent=c.pop("rank_unet")))
    with pytest.raises(ValueError, match=r"1 missing, 1 unknown\n  missing rank_unet; nearest there: rank_uent"):
        read_osediff(path)


def test_a_missing_tensor_is_told_with_the_nearest(weights, tmp_path):
    def rename(content):
        tensors = content["state_dict_unet"]
        tensors["conv_in.lora_A.encoder.weight"] = tensors.pop("conv_in.lora_A.default_encoder.weight")

    path = changed(weights, tmp_path / "w.pkl", rename)
    expected = r"missing conv_in.lora_A.default_encoder.weight; nearest there: conv_in.lora_A.encoder.weight"
    with pytest.raises(ValueError, match=expected):
        read_osediff(path)


def test_layers_of_another_base_are_refused(weights, tmp_path):
    content = torch.load(weights)
    content[LISTS["default_others"]] = [n.replace("mid_block", "middle") for n in content[LISTS["default_others"]]]
    with pytest.raises(ValueError, match=r"LoRA layers of the UNet: .*\n  missing mid_block.* nearest there: middle"):
        build_osediff(content, toy_base(tmp_path), PromptConfig(**NULL))
