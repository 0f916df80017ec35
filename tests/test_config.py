"""Settings: YAML and key=value in, typed values out, every mistake at once."""

import pytest
import yaml
from pydantic import Field

from osdhuman.config import Config, ConfigError, dump_config, load_config


class Inner(Config):
    rank: int = Field(4, gt=0)
    name: str = "a"


class Outer(Config):
    lr: float = 5e-5
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)


def mistakes(path=None, overrides=()):
    with pytest.raises(ConfigError) as error:
        load_config(Outer, path, overrides)
    return str(error.value)


def test_defaults_need_no_file():
    assert load_config(Outer) == Outer()


def test_yaml_changes_what_it_lists(tmp_path):
    (tmp_path / "a.yaml").write_text("inner:\n  rank: 8\n")
    assert load_config(Outer, tmp_path / "a.yaml").inner == Inner(rank=8)


def test_override_beats_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("inner:\n  rank: 8\n")
    assert load_config(Outer, tmp_path / "a.yaml", ["inner.rank=16"]).inner.rank == 16


def test_override_reads_exponents_and_lists():
    config = load_config(Outer, None, ["lr=1e-4", "sizes=[3, 4]"])
    assert (config.lr, config.sizes) == (1e-4, (3, 4))


def test_unknown_key_names_the_nearest():
    assert "inner.rnak: unknown key; did you mean 'rank'?" in mistakes(overrides=["inner.rnak=8"])


def test_every_mistake_is_reported_at_once():
    text = mistakes(overrides=["inner.rank=0", "lr=fast", "colour=red"])
    assert text.startswith("3 mistake(s)") and all(word in text for word in ("inner.rank", "lr", "colour"))


def test_wrong_value_is_shown():
    assert "got 'fast'" in mistakes(overrides=["lr=fast"])


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.yaml").write_text("")
    assert "did you mean" in mistakes(tmp_path / "trian.yaml")


def test_override_without_a_value_is_an_error():
    assert "key=value" in mistakes(overrides=["lr"])


def test_dump_reads_back_equal(tmp_path):
    config = Outer(lr=1e-4, inner=Inner(rank=2), sizes=(5,))
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(Outer, tmp_path / "a.yaml") == config


def test_dump_is_plain_yaml():
    assert yaml.safe_load(dump_config(Outer()))["inner"] == {"rank": 4, "name": "a"}
