"""Base, LoRA, generator and the model folder, on toy networks of the real classes."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from toys import LATENTS, TOKENS, WIDTH, toy_config, toy_unet, with_adapters_at_work, write_toy_base

from osdhuman import OSDHuman
from osdhuman.models.base import SD21_UNET, SD21_VAE, BaseError, fingerprint, load_base
from osdhuman.models.build import build_generator, trained_state
from osdhuman.models.diffusion import add_noise, alphas_cumprod, x0_from_noise
from osdhuman.models.lora import LoRAConfig, add_lora, merge_lora, share, unet_lora_layers, vae_lora_layers
from osdhuman.recipes.vsd_networks import RegularizerConfig, build_networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(folder):
    return load_base(folder)


@pytest.fixture
def model(folder, base):
    config = toy_config(folder)
    return OSDHuman(config, with_adapters_at_work(build_generator(config, base)), base)


@pytest.fixture
def lq():
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(3))


# --- schedule and Eq. 2


def test_schedule_ends_where_the_facts_say():
    assert alphas_cumprod()[999].item() == pytest.approx(0.00466009508818388, rel=1e-6)


def test_eq2_undoes_add_noise():
    z, noise, t, abar = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([20, 999]), alphas_cumprod()
    torch.testing.assert_close(x0_from_noise(add_noise(z, noise, t, abar), noise, t, abar), z, atol=1e-4, rtol=1e-4)


# --- which layers carry LoRA


def test_sd21_unet_has_258_lora_layers():
    with torch.device("meta"):
        assert len(unet_lora_layers(UNet2DConditionModel(**SD21_UNET))) == 258


def test_sd21_vae_has_32_lora_layers():
    with torch.device("meta"):
        assert len(vae_lora_layers(AutoencoderKL(**SD21_VAE))) == 32


def test_sd21_unet_lora_has_as_many_weights_as_osediff():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21_UNET).requires_grad_(False)
        add_lora(unet, unet_lora_layers(unet), LoRAConfig())
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 4_055_712


def test_effective_scale_is_two():
    assert LoRAConfig().scale == 2.0


def test_merge_by_hand():
    layer = torch.nn.ModuleDict({"q": torch.nn.Linear(2, 2, bias=False)})
    layer["q"].weight.data.zero_()
    pair = {"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[3.0], [4.0]])}
    merge_lora(layer, pair, scale=2.0)
    assert layer["q"].weight.tolist() == [[6.0, 12.0], [8.0, 16.0]]


def test_merge_names_the_layer_that_does_not_fit():
    with pytest.raises(ValueError, match="nowhere"):
        merge_lora(torch.nn.Module(), {"nowhere.lora_A.weight": torch.ones(1, 1)}, 1.0)


def test_shared_modules_use_the_same_tensors():
    unet = toy_unet()
    assert share(unet).conv_in.weight is unet.conv_in.weight


def test_an_adapter_on_one_shared_module_is_not_on_the_other():
    unet = toy_unet()
    other = share(unet)
    add_lora(other, unet_lora_layers(other), LoRAConfig())
    assert not any("lora" in name for name, _ in unet.named_parameters())


# --- generator


def test_restored_image_has_the_size_of_the_input(model, lq):
    assert model.generator(lq).image.shape == lq.shape


def test_latent_and_prompt_shapes(model, lq):
    out = model.generator(lq)
    assert (out.z_hat.shape, out.prompt.shape) == ((2, LATENTS, 8, 10), (2, TOKENS, WIDTH))


def test_the_same_image_gives_the_same_result(model, lq):
    assert torch.equal(model.generator(lq).image, model.generator(lq).image)


def test_sampling_the_posterior_does_not(model, lq):
    assert not torch.equal(model.generator(lq, sample=True).image, model.generator(lq, sample=True).image)


def test_prompt_can_come_from_another_image(model, lq):
    hq = torch.rand_like(lq)
    torch.testing.assert_close(
        model.generator(lq, prompt_image=hq).image,
        model.generator(lq, prompt=model.generator.prompt_extractor(hq)).image,
    )


def test_a_size_that_does_not_fit_is_an_error(model):
    with pytest.raises(ValueError, match="multiples of 8"):
        model.generator(torch.rand(1, 3, 30, 32))


def test_only_lora_and_hfie_train(model):
    trained = {n for n, p in model.generator.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.generator.named_parameters() if ".lora_" in n or ".hfie." in n}
    assert {n.partition(".")[0] for n in trained} == {"unet", "vae", "prompt_extractor"}


def test_conv_in_trains_in_full_by_a_switch(folder, base):
    state = trained_state(build_generator(toy_config(folder, train_conv_in=True), base))
    assert {"unet.conv_in.weight", "unet.conv_in.bias"} < set(state)


# --- the networks of a training run


def test_three_unets_share_the_base(folder, base):
    networks = build_networks(toy_config(folder), RegularizerConfig(), base)
    weights = [n.unet.get_submodule("mid_block.resnets.0.conv1") for n in networks]
    assert len({id(getattr(w, "base_layer", w).weight) for w in weights}) == 1


def test_a_new_regularizer_agrees_with_the_frozen_one(folder, base):
    _, regularizer, frozen = build_networks(toy_config(folder), RegularizerConfig(), base)
    z_t, t, p = torch.randn(1, LATENTS, 8, 8), torch.tensor([500]), torch.randn(1, TOKENS, WIDTH)
    torch.testing.assert_close(regularizer(z_t, t, p), frozen(z_t, t, p))


def test_mid_regularizer_trains_the_middle_alone(folder, base):
    networks = build_networks(toy_config(folder), RegularizerConfig(layers="mid"), base)
    parts = {n.split(".")[1] for n, p in networks.regularizer.named_parameters() if p.requires_grad}
    assert parts == {"mid_block"}


def test_the_regularizer_trains_all_parts_of_its_unet_by_default(folder, base):
    networks = build_networks(toy_config(folder), RegularizerConfig(), base)
    parts = {n.split(".")[1] for n, p in networks.regularizer.named_parameters() if p.requires_grad}
    assert parts == {"conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out"}


def test_checkpointed_gradients_are_right_though_the_regularizer_ran_in_between(folder, base, lq):
    def gradients(checkpointing):
        torch.manual_seed(0)
        networks = build_networks(toy_config(folder), RegularizerConfig(), base, checkpointing)
        for network in (networks.generator, networks.regularizer):
            with_adapters_at_work(network)
        out = networks.generator(lq)
        with torch.no_grad():
            networks.regularizer(out.z_hat, torch.tensor([5, 6]), out.prompt)
        out.image.mean().backward()
        return [p.grad for p in networks.generator.parameters() if p.requires_grad]

    torch.testing.assert_close(gradients(True), gradients(False))


# --- the model folder


def test_saved_model_restores_the_same_image(model, lq, tmp_path):
    loaded = OSDHuman.from_pretrained(model.save_pretrained(tmp_path), merge=False)
    torch.testing.assert_close(loaded.generator(lq).image, model.generator(lq).image)


def test_merged_lora_gives_the_same_image(model, lq, tmp_path):
    loaded = OSDHuman.from_pretrained(model.save_pretrained(tmp_path))
    torch.testing.assert_close(loaded.generator(lq).image, model.generator(lq).image, atol=1e-5, rtol=1e-4)


def test_merged_conv_in_starts_from_the_trained_one(folder, base, lq, tmp_path):
    config = toy_config(folder, train_conv_in=True)
    generator = with_adapters_at_work(build_generator(config, base))
    generator.unet.conv_in.base_layer.weight.data += 0.1
    loaded = OSDHuman.from_pretrained(OSDHuman(config, generator, base).save_pretrained(tmp_path))
    torch.testing.assert_close(loaded.generator(lq).image, generator(lq).image, atol=1e-5, rtol=1e-4)


def test_a_loaded_model_can_be_saved_again(model, tmp_path):
    OSDHuman.from_pretrained(model.save_pretrained(tmp_path / "a")).save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_base_inside_the_model_folder_moves_with_it(lq, tmp_path):
    base = load_base(write_toy_base(tmp_path / "a" / "base"))
    config = toy_config(tmp_path / "a" / "base")
    generator = with_adapters_at_work(build_generator(config, base))
    OSDHuman(config, generator, base).save_pretrained(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    torch.testing.assert_close(
        OSDHuman.from_pretrained(tmp_path / "b").generator(lq).image, generator(lq).image, atol=1e-5, rtol=1e-4
    )


def test_exported_folder_stands_alone(model, lq, tmp_path):
    merged = OSDHuman.from_pretrained(model.save_pretrained(tmp_path / "a"))
    merged.export(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    assert torch.equal(OSDHuman.from_pretrained(tmp_path / "c").generator(lq).image, merged.generator(lq).image)


def test_export_of_unmerged_weights_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match="merge=True"):
        model.export(tmp_path)


def test_a_missing_tensor_is_an_error(model, tmp_path):
    from safetensors.torch import load_file, save_file

    file = model.save_pretrained(tmp_path) / "model.safetensors"
    state = load_file(file)
    state.pop("prompt_extractor.hfie.query")
    save_file(state, file)
    with pytest.raises(ValueError, match=r"hfie\.query"):
        OSDHuman.from_pretrained(tmp_path)


# --- wrong bases


def test_another_base_is_an_error(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    other = write_toy_base(tmp_path / "other", seed=7)
    with pytest.raises(BaseError, match="another one"):
        OSDHuman.from_pretrained(tmp_path / "model", base=other)


def test_half_precision_files_are_the_same_base(base, tmp_path):
    folder = write_toy_base(tmp_path)
    before = fingerprint(folder)
    load_base(folder).unet.half().save_pretrained(folder / "unet")
    assert fingerprint(folder) == before


def test_v_prediction_is_an_error(tmp_path):
    with pytest.raises(BaseError, match=r"v_prediction.*512-pixel"):
        load_base(write_toy_base(tmp_path, prediction_type="v_prediction"))


def test_other_prompt_width_is_an_error(folder, base):
    from osdhuman.models.prompts import HFIEConfig

    config = toy_config(folder)
    prompt = config.prompt.model_copy(update={"hfie": HFIEConfig(queries=TOKENS, width=32)})
    with pytest.raises(ValueError, match=r"32 wide.*16"):
        build_generator(config.model_copy(update={"prompt": prompt}), base)


def test_a_base_that_cannot_be_had_names_every_place_tried(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(BaseError, match=r"(?s)sd2-community.*Manojb.*base=/path to"):
        load_base("stable-diffusion-2-1-base")


def test_a_folder_without_unet_is_no_base(tmp_path):
    with pytest.raises(BaseError, match=r"unet/config\.json"):
        load_base(tmp_path)


def test_text_without_a_text_encoder_is_an_error(base):
    with pytest.raises(BaseError, match="no text encoder"):
        base.encode_text([" "])


def test_card_names_the_base(model, tmp_path):
    card = json.loads((model.save_pretrained(tmp_path) / "config.json").read_text())
    assert card["base_fingerprint"] == fingerprint(model.base.folder)


def test_import_is_light():
    code = "import sys, osdhuman; print(any(m in sys.modules for m in ('torch', 'diffusers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
