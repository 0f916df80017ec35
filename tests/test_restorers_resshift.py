"""ResShift and SinSR as restorers: toy weights in the official layout, sizes, seeds, missing files, the record."""

from dataclasses import replace

import pytest
import torch
from resshift_toys import TINY_UNET, TINY_VQ, StandIn, decode, encode, filled, tiny_unet, tiny_vq
from restorer_toys import assert_batch_and_order_change_nothing, assert_keeps_size, lq_images

from osdhuman.files import file_sha256
from osdhuman.images import resize
from osdhuman.models.resshift.sampling import restore_tile, seeded_noise
from osdhuman.models.resshift.unet import SwinUNet
from osdhuman.restorers import RESTORERS, load_restorer

SIZES = {"unet": TINY_UNET.model_dump(), "vq": TINY_VQ.model_dump()}
FILES = {"resshift": "resshift_realsrx4_s15_v1.pth", "sinsr": "SinSR_v1.pth"}
BOTH = pytest.mark.parametrize("name", FILES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Official names with toy weights: ResShift's file plain, SinSR's as several GPUs save it."""
    folder = tmp_path_factory.mktemp("weights")
    unet = tiny_unet(0.06).state_dict()
    torch.save({"state_dict": unet}, folder / FILES["resshift"])
    torch.save({f"module.{name}": tensor for name, tensor in unet.items()}, folder / FILES["sinsr"])
    torch.save({"state_dict": unet}, folder / "own.pth")
    same_size = filled(SwinUNet(TINY_UNET.model_copy(update={"lq_size": 256})), 0.06)
    torch.save(same_size.state_dict(), folder / "same_size.pth")
    torch.save(tiny_vq(0.06).state_dict(), folder / "autoencoder_vq_f4.pth")
    return folder


@pytest.fixture
def load(folder):
    """A function that loads a restorer on the toy weights."""

    def load(name, weights=None, **settings):
        files = {
            "weights": str(folder / (weights or FILES[name])),
            "autoencoder": str(folder / "autoencoder_vq_f4.pth"),
        }
        return load_restorer(name, device="cpu", **SIZES | files | settings)

    return load


@BOTH
def test_both_are_registered(name):
    assert name in RESTORERS


@BOTH
@pytest.mark.parametrize(("height", "width"), [(136, 132), (133, 150), (40, 9)])
def test_any_size_is_kept(load, name, height, width):
    restorer = load(name, schedule={"steps": 2})
    assert_keeps_size(restorer, height, width)


@BOTH
def test_batch_and_order_change_nothing(load, name):
    assert_batch_and_order_change_nothing(load(name, schedule={"steps": 2}), 132, 132)


@BOTH
def test_a_result_is_a_draw_of_its_seed(load, name):
    restorer, lq = load(name, schedule={"steps": 2}), lq_images(132, 132, 1)
    assert torch.equal(restorer.restore(lq, [1]), restorer.restore(lq, [1]))
    assert not torch.equal(restorer.restore(lq, [1]), restorer.restore(lq, [2]))


def test_the_lq_is_reduced_to_a_quarter_and_enlarged_by_the_network(load):
    restorer, lq = load("sinsr"), lq_images(256, 256, 1)
    expected = restore_tile(resize(lq, (64, 64), "bicubic"), restorer.tile, seeded_noise([4]))
    assert torch.equal(restorer.restore(lq, [4]), expected)


def test_or_the_result_is_reduced(load):
    restorer, lq = load("sinsr", reduce="after", kernel="area"), lq_images(64, 40, 1)
    expected = resize(restore_tile(lq, restorer.tile, seeded_noise([4])), (64, 40), "area")
    torch.testing.assert_close(restorer.restore(lq, [4]), expected)


def test_an_odd_size_is_filled_up_before_it_is_reduced(load):
    restorer, lq = load("sinsr"), lq_images(255, 253, 1)
    filled_up = torch.nn.functional.pad(lq, (0, 3, 0, 1), mode="replicate")
    assert torch.equal(restorer.restore(lq, [4]), restorer.restore(filled_up, [4])[..., :255, :253])


def test_a_network_that_keeps_the_size_gets_the_lq_itself(load):
    unet = TINY_UNET.model_copy(update={"lq_size": 256}).model_dump()
    restorer = load("resshift", weights="same_size.pth", version=None, unet=unet, schedule={"steps": 2})
    lq = lq_images(160, 150, 1)
    expected = restore_tile(lq, restorer.tile, seeded_noise([4]))
    assert (restorer.tile.scale, restorer.tile.padding) == (1, 256)
    assert torch.equal(restorer.restore(lq, [4]), expected)


def test_tiles_of_an_image_have_noise_of_their_own(load):
    flat = torch.full((1, 3, 256, 512), 0.5)  # two tiles of 64 x 64
    restored = load("sinsr", chop={"size": 64, "stride": 64}).restore(flat, [4])
    assert not torch.allclose(restored[..., :256], restored[..., 256:], atol=1e-2)


@pytest.mark.parametrize(("version", "steps"), [("v1", 15), ("v2", 15), ("v3", 4)])
def test_a_version_has_its_schedule(load, version, steps):
    restorer = load("resshift", weights="own.pth", version=version)
    assert restorer.tile.schedule.steps == steps


@pytest.mark.parametrize(("name", "calls"), [("resshift", 15), ("sinsr", 1)])
def test_the_network_runs_once_a_step_and_once_in_sinsr(load, name, calls):
    restorer, counted, network = load(name), [], StandIn()

    def counting(*arguments):
        counted.append(1)
        return network(*arguments)

    restorer.tile = replace(restorer.tile, network=counting, encode=encode, decode=decode)
    restorer.restore(lq_images(132, 132, 1), [0])
    assert len(counted) == calls


def test_half_precision_is_that_of_the_products_only(load):
    restorer, products = load("sinsr", dtype="bfloat16"), []

    def encoded(image):
        products.append((image[0, 0] @ image[0, 0].mT).dtype)
        return encode(image)

    restorer.tile = replace(restorer.tile, network=StandIn(), encode=encoded, decode=decode)
    assert restorer.restore(lq_images(132, 132, 1), [0]).dtype == torch.float32
    assert products == [torch.bfloat16] and next(restorer.unet.parameters()).dtype == torch.float32


# what can be wrong


@BOTH
def test_missing_weights_are_named_with_source_licence_and_place(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_restorer(name)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{FILES[name]} does not exist. It is {FILES[name]}, an asset of release")
    assert "non-commercial). Download it to that path, or pass weights=PATH" in first
    assert "autoencoder_vq_f4.pth" in second and "pass autoencoder=PATH" in second


def test_the_file_of_another_version_is_refused(load):
    with pytest.raises(ValueError, match=r"SinSR_v1.pth is sinsr_v1; resshift_v2 is resshift_realsrx4_s15_v2.pth"):
        load("resshift", weights=FILES["sinsr"], version="v2")


def test_own_weights_need_a_file():
    with pytest.raises(ValueError, match="version null stands for own weights: name their file, weights=FILE"):
        load_restorer("resshift", version=None)


def test_tiles_that_the_network_cannot_pad_are_refused():
    with pytest.raises(ValueError, match=r"chop.size 32 is too small for lq_size 64"):
        load_restorer("resshift", chop={"size": 32, "stride": 32})


def test_memory_that_runs_out_says_what_helps(load):
    restorer = load("sinsr")
    restorer.unet.register_forward_pre_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(MemoryError, match=r"does not fit into memory; choose smaller tiles \(chop.size"):
        restorer.restore(lq_images(132, 132, 1), [0])


# what it says of itself


@BOTH
def test_files_and_licences_are_in_the_record(load, folder, name):
    said = load(name).describe()
    paths = [folder / FILES[name], folder / "autoencoder_vq_f4.pth"]
    assert said["weights"] == {path.name: file_sha256(path) for path in paths}
    assert said["licences"]["autoencoder_vq_f4.pth"] == "S-Lab License 1.0, non-commercial"
    assert said["settings"]["reduce"] == "before"


def test_networks_are_measured_one_by_one(load):
    restorer = load("sinsr")
    assert restorer.modules() == {"unet": restorer.unet, "vq": restorer.vq}
