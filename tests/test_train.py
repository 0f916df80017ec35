"""The training loop on toy networks: what changes, what stays, what is random, how a run stops and continues."""

import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from toy_recipe import ToySettings
from toy_training import draw_images, toy_config, toy_trainer, weights

from osdhuman import OSDHuman
from osdhuman.config import ConfigError
from osdhuman.data.samples import find_pairs
from osdhuman.images import load_rgb
from osdhuman.metrics.luma import psnr_y
from osdhuman.models.lora import LoRAConfig
from osdhuman.recipes import find_recipe, load_training
from osdhuman.recipes.osdhuman import OSDHumanRecipe, OSDHumanTraining, draw_t
from osdhuman.recipes.weights import missing_of_base, missing_of_perceptual
from osdhuman.resume import exclusive
from osdhuman.train.checkpoint import changed_settings, newest_checkpoint, read_checkpoint
from osdhuman.train.config import OptimizerConfig
from osdhuman.train.learner import Learner, learning_rate
from osdhuman.train.loop import Trainer, build_trainer
from osdhuman.train.precision import choose_precision
from osdhuman.train.validation import evaluating

CONFIGS = Path(__file__).parents[1] / "configs" / "train"


def trained(folder, *overrides):
    """The weights after a whole run, in a run folder of its own."""
    trainer = toy_trainer(toy_config(folder, *overrides))
    trainer.run()
    return weights(trainer)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses_of(trainer, steps):
    trainer.open_batches()
    for trainer.step in range(steps):
        yield {name: float(value) for name, value in trainer.iterate().items()}


def begun(folder, *overrides):
    """A trainer, its recipe and its first micro-batch."""
    trainer = toy_trainer(toy_config(folder, *overrides))
    return trainer, trainer.recipe, trainer.to_device(next(trainer.open_batches()))


# ------------------------------------------------------------------------------------------------------- the algorithm


def test_the_losses_fall(tmp_path):
    for side in ("hq", "lq"):
        draw_images(tmp_path / "pairs" / side, 1, size=16)
    pairs = f"data={{kind: pairs, paths: {tmp_path / 'pairs'}, size: 16, workers: 0}}"
    trainer = toy_trainer(toy_config(tmp_path, pairs, "lambda_vsd=0", "optimizer.lr=0.05"))
    history = list(losses_of(trainer, 60))
    start, end = ({k: sum(h[k] for h in part) for k in history[0]} for part in (history[:10], history[-10:]))
    assert end["mse"] < 0.95 * start["mse"] and end["regularizer"] < 0.95 * start["regularizer"]


def test_every_trained_weight_moves_and_every_frozen_one_stays(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path))
    networks = enumerate(trainer.recipe.networks)
    after = {f"{i}.{name}": p for i, network in networks for name, p in network.named_parameters()}
    before = {name: p.detach().clone() for name, p in after.items()}
    trainer.run()
    assert {name: not torch.equal(before[name], p) for name, p in after.items()} == {
        name: p.requires_grad for name, p in after.items()
    }


def test_the_regularizer_does_not_train_the_generator(tmp_path):
    """Its step begins with the latents of the generator's; nothing flows back, whatever the regularizer's loss."""
    trainer, recipe, _ = begun(tmp_path)
    gradients = []

    def diffuse(z_hat, prompt, rng):
        loss = OSDHumanRecipe.diffuse(recipe, z_hat, prompt, rng)
        loss.backward(retain_graph=True)
        gradients.extend(p.grad for p in recipe.generator.parameters.values())
        return loss

    recipe.diffuse = diffuse
    trainer.iterate()
    assert gradients and all(gradient is None for gradient in gradients)


def test_vsd_trains_the_generator_through_z_hat_alone(tmp_path):
    _, recipe, batch = begun(tmp_path)
    z_hat = recipe.generate(batch).z_hat.detach().requires_grad_()
    recipe.distill(z_hat, torch.ones(4, 2, 3), batch.rng).backward()
    assert z_hat.grad.abs().sum() > 0 and all(p.grad is None for p in recipe.regularizer.parameters.values())


def test_vsd_is_zero_where_the_regularizers_agree(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "cfg_scale=1"))
    networks = trainer.recipe.networks
    networks.regularizer.load_state_dict(networks.frozen.state_dict())
    assert next(losses_of(trainer, 1))["vsd"] == 0


def test_guidance_of_scale_one_skips_the_negative_half(tmp_path):
    seen = []
    trainer = toy_trainer(toy_config(tmp_path, "cfg_scale=1"))
    trainer.recipe.networks.frozen.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    list(losses_of(trainer, 1))
    assert seen == [4]


def test_guidance_asks_for_both_halves_in_one_call_negative_first(tmp_path):
    seen = []
    trainer = toy_trainer(toy_config(tmp_path))
    trainer.recipe.networks.frozen.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    list(losses_of(trainer, 1))
    assert len(seen) == 1 and len(seen[0]) == 8 and torch.equal(seen[0][:4], torch.ones(4, 2, 3))


def test_t_is_drawn_from_the_range_of_the_paper():
    t = draw_t(OSDHumanTraining().t_range, torch.zeros(20_000), torch.Generator().manual_seed(0))
    assert (t.min(), t.max(), t.dtype) == (20, 979, torch.int64)


def test_accumulation_gives_the_weights_of_the_whole_batch(tmp_path):
    # without noise of their own: with it, each micro-batch has its own draw
    whole = toy_trainer(toy_config(tmp_path, "optimizer.clip=1000"))
    parts = toy_trainer(toy_config(tmp_path, "optimizer.clip=1000", "accumulation=2"))
    for trainer in (whole, parts):
        recipe = trainer.recipe
        recipe.generate = lambda batch, r=recipe: r.generator.network(batch.lq)
        recipe.distill = lambda z_hat, prompt, rng: z_hat.square().mean()
        recipe.diffuse = lambda z, p, rng, r=recipe: r.regularizer.network(z, torch.ones(len(z)), p).square().mean()
        list(losses_of(trainer, 2))
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)


def test_one_update_of_each_network_per_step_whatever_the_accumulation(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "accumulation=4"))
    trainer.run()
    optimizers = [learner.optimizer for learner in trainer.recipe.learners.values()]
    assert {int(state["step"]) for optimizer in optimizers for state in optimizer.state.values()} == {3}


def test_the_gradient_is_clipped(tmp_path):
    learner = toy_trainer(toy_config(tmp_path)).recipe.generator
    for parameter in learner.parameters.values():
        parameter.grad = torch.full_like(parameter, 100.0)
    seen = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in learner.parameters.values()]).norm().item())
    )
    learner.step()
    assert seen == [pytest.approx(1.0, rel=1e-4)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_float32_weights(tmp_path, precision):
    after = trained(tmp_path, f"mixed_precision={precision}")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())


def test_the_prompt_can_come_from_hq(tmp_path):
    _, recipe, batch = begun(tmp_path, "model.prompt.source=hq")
    from_lq = toy_trainer(toy_config(tmp_path)).recipe.generate(batch._replace(lq=batch.hq)).prompt
    assert torch.equal(recipe.generate(batch).prompt, from_lq)


def test_training_can_have_a_prompt_extractor_of_its_own(tmp_path):
    """OSEDiff trains with plain RAM tags of HQ and restores with DAPE's tags of LQ."""
    _, recipe, batch = begun(tmp_path, "model.prompt.source=hq")
    recipe.training_prompt = lambda image: image.mean((2, 3))[:, None].expand(-1, 2, -1)
    assert torch.equal(recipe.generate(batch).prompt[:, 0], batch.hq.mean((2, 3)))


# ------------------------------------------------------------------------------------------------ the real networks


class RealRun(NamedTuple):
    """Two steps of small networks of the real classes; `frozen` are the frozen regularizer's weights before them."""

    config: OSDHumanTraining
    trainer: Trainer
    frozen: dict[str, torch.Tensor]
    output: str


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> RealRun:
    from toys import toy_config as toy_model
    from toys import with_adapters_at_work, write_toy_base

    folder = tmp_path_factory.mktemp("real")
    for side in ("hq", "lq"):
        draw_images(folder / "val" / side, 2, size=37)
    model = toy_model(write_toy_base(folder / "base"), train_conv_in=True)
    settings = ("gradient_checkpointing=true", "data.size=32", "max_steps=2", f"validation={folder / 'val'}")
    config = toy_config(folder, *settings).model_copy(update={"model": model})
    trainer = build_trainer(config, OSDHumanRecipe)
    with_adapters_at_work(trainer.recipe.networks.generator)
    frozen = {name: p.detach().clone() for name, p in trainer.recipe.networks.frozen.named_parameters()}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        trainer.run()
    return RealRun(config, trainer, frozen, output.getvalue())


def test_the_frozen_regularizer_stays_though_it_shares_the_base(real):
    after = dict(real.trainer.recipe.networks.frozen.named_parameters())
    assert after and same(real.frozen, after)


def test_the_checkpoint_is_a_model(real):
    lq = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = OSDHuman.from_pretrained(newest_checkpoint(real.config.run) / "model").generator(lq).image
        torch.testing.assert_close(restored, real.trainer.recipe.networks.generator(lq).image, atol=1e-4, rtol=0)


def test_the_psnr_of_validation_is_that_of_the_product(real):
    model = OSDHuman.from_pretrained(real.config.run / "model")
    pairs = find_pairs(real.config.validation)
    images = [(model(load_rgb(lq)[None]), load_rgb(hq)[None]) for hq, lq in pairs]
    psnr = sum(psnr_y(restored, hq).item() for restored, hq in images) / len(pairs)
    assert float(re.search(r"step 2: PSNR-Y ([\d.]+)", real.output)[1]) == pytest.approx(psnr, abs=1e-3)


def test_another_lora_rank_at_resume_is_named(real):
    lora = LoRAConfig(rank=8)
    model = real.config.model.model_copy(update={"unet_lora": lora})
    changed = real.config.model_copy(update={"model": model, "max_steps": 3})
    with pytest.raises(ValueError, match=r"does not fit these settings.*model\.unet_lora\.rank: 4 -> 8") as error:
        build_trainer(changed, OSDHumanRecipe).run()
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- reproducibility


def test_a_run_is_a_function_of_its_settings(tmp_path):
    assert same(trained(tmp_path, f"run={tmp_path}/a"), trained(tmp_path, f"run={tmp_path}/b"))


def test_another_seed_gives_other_weights(tmp_path):
    assert not same(trained(tmp_path, f"run={tmp_path}/a"), trained(tmp_path, f"run={tmp_path}/b", "seed=1"))


@pytest.mark.parametrize("term", ["mse", "vsd", "regularizer"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, term, monkeypatch):
    loss = {"mse": "mse_loss", "vsd": "vsd_loss", "regularizer": "regularizer_loss"}[term]
    monkeypatch.setattr(f"osdhuman.recipes.osdhuman.{loss}", lambda *_: trainer_parameter().sum() * math.nan)
    trainer = toy_trainer(toy_config(tmp_path))

    def trainer_parameter():
        learner = trainer.recipe.learners["regularizer" if term == "regularizer" else "generator"]
        return next(iter(learner.parameters.values()))

    with pytest.raises(FloatingPointError, match=f"step 1: the term '{term}' is nan"):
        trainer.run()


# ---------------------------------------------------------------------------------------------------------- the rate


def test_the_rate_is_constant_as_in_the_paper():
    assert {learning_rate(OptimizerConfig(), step, 35_000) for step in (0, 17_000, 34_999)} == {5e-5}


def test_the_rate_rises_then_falls_as_half_a_cosine():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, decay="cosine")
    rates = [learning_rate(config, step, 12) for step in (0, 3, 4, 8, 12)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0])


# ------------------------------------------------------------------------------------------------- average, validation


def test_the_saved_model_holds_the_averages(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "ema=0.5", "max_steps=1"))
    before = weights(trainer)["generator.encoder.bias"]
    saved = torch.load(trainer.run().folder / "toy.pt", weights_only=True)["encoder.bias"]
    torch.testing.assert_close(saved, (before + weights(trainer)["generator.encoder.bias"]) / 2)


def test_averaging_does_not_change_the_training(tmp_path):
    averaged = trained(tmp_path, f"run={tmp_path}/a", "ema=0.9")
    plain = trained(tmp_path, f"run={tmp_path}/b")
    assert all(torch.equal(averaged[name], weight) for name, weight in plain.items())


def test_validation_scores_and_draws_images_of_any_size(tmp_path, capsys):
    for side in ("hq", "lq"):
        draw_images(tmp_path / "val" / side, 3, size=21)
    toy_trainer(toy_config(tmp_path, f"validation={tmp_path}/val", "validate_every=2")).run()
    pictures = sorted(path.name for path in (tmp_path / "run" / "validation").iterdir())
    assert pictures == ["step-00000002.png", "step-00000003.png"] and "PSNR-Y" in capsys.readouterr().out


def test_a_validation_that_fails_is_reported_and_costs_nothing(tmp_path, capsys):
    draw_images(tmp_path / "val" / "hq", 2)
    draw_images(tmp_path / "val" / "lq", 2)
    trainer = toy_trainer(toy_config(tmp_path, f"validation={tmp_path}/val", "validate_every=2"))
    trainer.recipe.restore = lambda lq: 1 / 0
    assert trainer.run().finished
    assert "step 2: 2 of 2 pairs failed; " in capsys.readouterr().out


def test_a_validation_set_that_vanishes_is_reported_and_costs_nothing(tmp_path, capsys):
    assert toy_trainer(toy_config(tmp_path, f"validation={tmp_path}/val", "validate_every=2")).run().finished
    assert "step 2: validation failed, training goes on: FileNotFoundError" in capsys.readouterr().out


def test_a_pair_that_fails_costs_no_other(tmp_path, capsys):
    for side in ("hq", "lq"):
        draw_images(tmp_path / "val" / side, 3)
    (tmp_path / "val" / "lq" / "1.png").write_bytes(b"")
    toy_trainer(toy_config(tmp_path, f"validation={tmp_path}/val")).run()
    output = capsys.readouterr().out
    assert "step 3: PSNR-Y" in output and "step 3: 1 of 3 pairs failed; " in output


def test_the_checkpoint_comes_before_the_validation_of_the_same_step(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "save_every=2", "validate_every=2"))
    seen = []
    trainer.validate = lambda: seen.append(newest_checkpoint(trainer.config.run).name)
    trainer.run()
    assert seen == ["step-00000002", "step-00000003"]


def test_modules_have_their_own_modes_again_after_validation():
    network = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU().eval())
    with evaluating([network]):
        within = [module.training for module in network.modules()]
    assert (within, [m.training for m in network.modules()]) == ([False] * 3, [True, True, False])


def test_losses_and_scores_go_to_tensorboard(tmp_path):
    toy_trainer(toy_config(tmp_path, "trackers=[tensorboard]", "log_every=1")).run()
    event_file = next((tmp_path / "run" / "logs").rglob("events.*"))
    assert b"train/regularizer" in event_file.read_bytes()


def test_a_bad_image_is_counted_and_named_in_the_run_folder(tmp_path, capsys):
    config = toy_config(tmp_path)
    (tmp_path / "hq" / "5.png").write_bytes(b"")
    toy_trainer(config).run()
    [record] = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert record["path"] == str(tmp_path / "hq" / "5.png")
    assert f"1 of 6 training images could not be used (1 {record['reason']})" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- stop and continue


def test_it_stops_at_max_steps(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "max_steps=5"))
    trainer.run()
    assert trainer.step == 5


@pytest.mark.parametrize("extra", [(), ("ema=0.9",), ("mixed_precision=fp16",), ("data.workers=1",)])
def test_a_run_in_two_parts_gives_the_weights_of_one(tmp_path, extra):
    whole = trained(tmp_path, f"run={tmp_path}/whole", "max_steps=5", *extra)
    trained(tmp_path, "max_steps=2", *extra)
    assert same(trained(tmp_path, "max_steps=5", *extra), whole)


def test_a_run_killed_while_saving_gives_the_weights_of_an_uninterrupted_one(tmp_path):
    settings = ("max_steps=400", "save_every=1")
    config = toy_config(tmp_path, *settings)
    command = [sys.executable, str(Path(__file__).with_name("toy_training.py")), str(tmp_path), *settings]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while run.poll() is None and not list((config.run / "checkpoints").glob("step-000000[1-9]*.part")):
        time.sleep(0.0005)  # the tenth checkpoint or a later one
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    reached = int(newest_checkpoint(config.run).name.removeprefix("step-"))
    whole = trained(tmp_path, f"run={tmp_path}/whole", f"max_steps={reached + 3}")
    assert same(trained(tmp_path, f"max_steps={reached + 3}"), whole)


def test_sigterm_saves_the_step_under_way_and_leaves(tmp_path):
    trainer = toy_trainer(toy_config(tmp_path, "max_steps=100"))
    iterate = trainer.iterate

    def interrupted():
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate()

    trainer.iterate = interrupted
    assert trainer.run() == (tmp_path / "run" / "checkpoints" / "step-00000002", 2, False)


def test_after_sigterm_the_same_command_continues_exactly(tmp_path):
    whole = trained(tmp_path, f"run={tmp_path}/whole", "max_steps=5")
    test_sigterm_saves_the_step_under_way_and_leaves(tmp_path)
    assert same(trained(tmp_path, "max_steps=5"), whole)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("osdhuman.train.checkpoint.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "save_every=1")
    assert newest_checkpoint(tmp_path / "run") is None


def test_unfinished_checkpoints_are_removed(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-00000001.part").mkdir(parents=True)
    trained(tmp_path)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    trained(tmp_path, "max_steps=5", "save_every=1", "keep_last=2")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_continuing_with_other_settings_says_what_differs(tmp_path, capsys):
    trained(tmp_path)
    trained(tmp_path, "optimizer.lr=0.02", "max_steps=4")
    assert "optimizer.lr: 0.01 -> 0.02" in capsys.readouterr().out


def test_the_settings_are_in_the_run_folder_and_read_back(tmp_path):
    config = toy_config(tmp_path)
    toy_trainer(config).run()
    assert load_training(tmp_path / "run" / "config.yaml") == config
    assert changed_settings(read_checkpoint(newest_checkpoint(config.run)), config) == []


def test_switching_averages_on_in_the_middle_is_refused_with_both_sides_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"it holds generator, regularizer, this run has .*, ema.*ema: None -> 0.9"):
        trained(tmp_path, "ema=0.9", "max_steps=4")


@pytest.mark.parametrize("stray", ["step-foo", "step-00000016.bak", "step-notes.txt", "step-99"])
def test_what_is_no_checkpoint_is_ignored(tmp_path, stray):
    trained(tmp_path, "max_steps=2")
    (tmp_path / "run" / "checkpoints" / stray).mkdir()
    assert newest_checkpoint(tmp_path / "run").name == "step-00000002"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "generator.safetensors": truncate,
    "regularizer.safetensors": Path.unlink,
    "state.json": lambda file: file.write_text(""),
    "random-0.pt": lambda file: file.write_bytes(b""),
    "config.yaml": lambda file: file.write_text("run: !!python/object:os.system {}"),
}


@pytest.mark.parametrize("file", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(tmp_path, capsys, file):
    whole = trained(tmp_path, f"run={tmp_path}/whole", "max_steps=5")
    trained(tmp_path, "max_steps=4", "save_every=2")
    DAMAGES[file](tmp_path / "run" / "checkpoints" / "step-00000004" / file)
    assert same(trained(tmp_path, "max_steps=5", "keep_last=1"), whole)
    output = capsys.readouterr().out
    assert f"step-00000004/{file} is damaged or missing" in output and "step-00000002 at step 2" in output


def test_a_damaged_checkpoint_is_set_aside(tmp_path):
    trained(tmp_path, "max_steps=4", "save_every=2")
    truncate(tmp_path / "run" / "checkpoints" / "step-00000004" / "generator.safetensors")
    trained(tmp_path, "max_steps=5", "keep_last=1")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004.damaged", "step-00000005"]


def test_where_all_checkpoints_are_damaged_one_line_says_so(tmp_path):
    trained(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").unlink()
    with pytest.raises(
        ValueError, match=r"no checkpoint of .* can be read: .*state\.json.* Remove them to begin again"
    ):
        trained(tmp_path)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("osdhuman.train.checkpoint.save_file", full)
    with pytest.raises(OSError, match="could not be written: I/O error: No space left"):
        trained(tmp_path)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with exclusive(toy_config(tmp_path).run), pytest.raises(ValueError, match="another run is working in"):
        trained(tmp_path)


# --------------------------------------------------------------------------------------------------------- before it


def test_all_that_is_missing_is_told_at_once(tmp_path):
    """Images, validation pairs, base with its text encoder, and RAM's weights: before anything is loaded."""
    from toys import write_toy_base

    base = write_toy_base(tmp_path / "base")
    (base / "null_prompt.safetensors").unlink()
    (tmp_path / "file").touch()
    settings = ["batch_size=3", "accumulation=2", f"validation={tmp_path}/val", "perceptual=none", "trackers=[]"]
    paths = [
        f"data.paths={tmp_path}/none",
        f"run={tmp_path}/file",
        f"model.base={base}",
        "model.prompt.encoder=ram.pth",
    ]
    with pytest.raises(ValueError, match=r"^6 things are missing") as error:
        build_trainer(load_training(None, settings + paths), OSDHumanRecipe)
    lines = str(error.value).splitlines()
    words = ["none", "cannot be shared", "validation: ", "run folder", "text_encoder/config.json", "ram.pth does not"]
    assert len(lines) == 7 and all(word in line for word, line in zip(words, lines[1:], strict=True))


def test_lpips_without_its_weights_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("osdhuman.recipes.weights._unreachable", lambda url: "no network")
    [line] = missing_of_perceptual("lpips")
    assert "vgg16" in line and "no network" in line and "perceptual=stlpips" in line


def test_a_base_that_the_hub_does_not_have_is_told_before_anything_is_loaded(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    [line] = missing_of_base("nobody/nothing", text=False)
    assert "nobody/nothing: no network" in line and "model.base=FOLDER" in line


@pytest.mark.parametrize(("fast", "chosen"), [(True, "bf16"), (False, "no")])
def test_precision_is_chosen_for_the_device(monkeypatch, fast, chosen):
    monkeypatch.setattr("osdhuman.train.precision.has_fast_bfloat16", lambda device: fast)
    assert choose_precision("auto", torch.device("cpu")) == chosen


def test_bf16_on_a_cpu_that_emulates_it_warns(monkeypatch):
    monkeypatch.setattr("osdhuman.train.precision.has_fast_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="mixed_precision=auto chooses float32"):
        assert choose_precision("bf16", torch.device("cpu")) == "bf16"


# ------------------------------------------------------------------------------------------------------- the contract


def test_a_recipe_of_forty_lines_trains_and_continues(tmp_path):
    draw_images(tmp_path / "hq", 3)
    data = f"data={{paths: {tmp_path / 'hq'}, size: 16, workers: 0}}"

    def run(*overrides):
        config = load_training(None, [data, "recipe=toy", "batch_size=4", "trackers=[]", "ema=0.9", *overrides])
        trainer = build_trainer(config, find_recipe(config.recipe))
        trainer.run()
        return dict(trainer.recipe.network.named_parameters())

    whole = run(f"run={tmp_path}/whole", "max_steps=3")
    run(f"run={tmp_path}/run", "max_steps=2")
    assert same(run(f"run={tmp_path}/run", "max_steps=3"), whole)


def test_the_class_of_the_settings_is_that_of_the_recipe():
    assert type(load_training(None, ["recipe=toy"])) is ToySettings


def test_settings_of_another_recipe_are_unknown_keys():
    with pytest.raises(ConfigError, match="lambda_vsd: unknown key"):
        load_training(None, ["recipe=toy", "lambda_vsd=1"])


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'osdhuman'"):
        load_training(None, ["recipe=osdhumn"])


def test_the_engine_imports_no_recipe():
    imports = "import sys, osdhuman.train.loop; print([name for name in sys.modules if 'osdhuman.recipes' in name])"
    assert subprocess.check_output([sys.executable, "-c", imports], text=True).strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("preset", ["osdhuman", "osdhuman_cfg1", "osdhuman_eq6", "osdhuman_24gb", "osdhuman_lsdir"])
def test_presets_load_and_train_16_images_a_step_for_35_000_steps(preset):
    config = load_training(CONFIGS / f"{preset}.yaml")
    assert (config.batch_size, config.max_steps) == (16, 35_000)


def test_the_cfg1_preset_changes_the_guidance_alone():
    paper, cfg1 = (load_training(CONFIGS / f"{name}.yaml") for name in ("osdhuman", "osdhuman_cfg1"))
    assert cfg1 == paper.model_copy(update={"cfg_scale": 1.0, "run": cfg1.run})


def test_the_eq6_preset_is_the_formula_as_printed():
    paper, eq6 = (load_training(CONFIGS / f"{name}.yaml") for name in ("osdhuman", "osdhuman_eq6"))
    assert eq6 == paper.model_copy(update={"cfg_scale": 1.0, "vsd_form": "noise", "run": eq6.run})


def test_the_lsdir_preset_changes_the_data_alone():
    paper, lsdir = (load_training(CONFIGS / f"{name}.yaml") for name in ("osdhuman", "osdhuman_lsdir"))
    assert lsdir == paper.model_copy(update={"run": lsdir.run, "data": lsdir.data}) and lsdir.data.size == 512


def test_plain_ram_tags_in_training_need_dape_to_restore_with():
    with pytest.raises(ConfigError, match="set kind 'dape' and dape"):
        load_training(None, ["model.prompt.training=ram"])


def test_a_range_of_timesteps_must_rise():
    with pytest.raises(ConfigError, match="t_range must be"):
        load_training(None, ["t_range=[980, 20]"])


def test_guidance_without_a_negative_prompt_names_the_way_out(tmp_path):
    from toy_training import Networks, ToyGenerator, ToyRegularizer

    networks = Networks(ToyGenerator(), ToyRegularizer(), ToyRegularizer())
    with pytest.raises(ValueError, match="use cfg_scale=1"):
        OSDHumanRecipe(toy_config(tmp_path), networks, None, print)


def test_moments_come_back_in_the_memory_order_of_their_weights():
    """A convolution in channels_last: fused AdamW pairs weights and moments by their place in memory."""

    def learner():
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        accelerator = SimpleNamespace(prepare_model=lambda module: module, device=torch.device("cpu"))
        learner = Learner(network, OptimizerConfig(lr=1e-2))
        learner.prepare(accelerator)
        return learner

    def step(learner, seed):
        learner.backward(learner.network(torch.randn(2, 3, 8, 8, generator=torch.manual_seed(seed))).square().mean())
        learner.step()

    whole, first, second = learner(), learner(), learner()
    for seed in (1, 2):
        step(whole, seed)
    step(first, 1)
    tensors, numbers = first.state()
    second.load_state({name: tensor.contiguous() for name, tensor in tensors.items()}, numbers)
    step(second, 2)
    assert torch.equal(second.network.weight, whole.network.weight)
