"""Settings: YAML and key=value in, typed values out, every mistake at once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BeforeValidator, Field

from osdhuman.config import Config, ConfigError, dump_config, load_config, load_yaml


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


# ---------------------------------------------------------------------------------- text is text, the rest is YAML 1.2


class Method(Config):
    images: dict[str, Path] = Field({})
    settings: dict[str, Any] = Field({})
    seed: int = 0


class Source(Config):
    name: str = ""
    side: int = 1


class Command(Config):
    run: Path = Path("run")
    paths: Annotated[tuple[Path, ...], BeforeValidator(lambda paths: [paths] if isinstance(paths, str) else paths)] = ()
    precision: Literal["no", "bf16"] = "bf16"
    limit: Literal["auto"] | float = "auto"
    title: str | None = "a"
    flip: bool = True
    lr: float = 1.0
    steps: int = 1
    methods: dict[str, Method] = Field({})
    sources: tuple[Source, ...] = ()


def command(*overrides: str) -> Command:
    return load_config(Command, None, overrides)


def from_file(folder: Path, text: str) -> Command:
    (folder / "a.yaml").write_text(text)
    return load_config(Command, folder / "a.yaml")


@pytest.mark.parametrize(
    "text",
    ["my run #2", "@x", "%x", "[old] run", "2024", "0123", "2024-01-02", "a=b", "x: y", "no", "'q'", "&x", "null"],
)
def test_a_field_of_text_takes_text_as_it_is(text):
    assert command(f"run={text}").run == Path(text)


@pytest.mark.parametrize("text", ["2024", "0123", "2024-01-02", "no", "1e-5", "1:30"])
def test_a_file_gives_text_to_a_field_of_text(tmp_path, text):
    assert from_file(tmp_path, f"title: {text}\nrun: {text}\nsources: [{{name: {text}}}]") == Command(
        title=text, run=text, sources=[Source(name=text)]
    )


@pytest.mark.parametrize("text", ["/a #1", "[old] run", "2024"])
def test_a_list_of_paths_takes_one_path_as_it_is(text):
    assert command(f"paths={text}").paths == (Path(text),)


def test_the_items_of_a_list_are_text_where_the_field_says_so():
    assert command("paths=[a, 2024, no]").paths == (Path("a"), Path("2024"), Path("no"))


def test_a_choice_called_no_can_be_made():
    assert command("precision=no").precision == "no"


def test_a_choice_may_stand_in_quotes():
    assert command("precision='no'").precision == "no"


def test_a_choice_called_no_can_be_made_in_a_file(tmp_path):
    assert from_file(tmp_path, "precision: no").precision == "no"


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("5e-5", 5e-5), ("3", 3)])
def test_a_choice_of_a_word_or_a_number_takes_both(text, value):
    assert command(f"limit={text}").limit == value


@pytest.mark.parametrize("text", ["null", "Null"])
def test_optional_text_can_be_taken_away(text):
    assert command(f"title={text}").title is None


@pytest.mark.parametrize(("text", "value"), [("true", True), ("no", False), ("off", False), ("0", False)])
def test_a_switch_takes_the_usual_words(text, value):
    assert command(f"flip={text}").flip is value


@pytest.mark.parametrize(("text", "value"), [("5e-5", 5e-5), ("1E3", 1000), (".5", 0.5), ("-1.5e+2", -150)])
def test_numbers_with_exponents_are_numbers(text, value):
    assert load_yaml(f"a: {text}") == {"a": value}


@pytest.mark.parametrize("text", ["no", "off", "2024-01-02", "1:30", "0b1"])
def test_what_yaml_1_2_does_not_know_is_text(text):
    assert load_yaml(f"a: {text}") == {"a": text}


def test_leading_zeros_do_not_make_a_number_octal():
    assert command("steps=0123").steps == 123


def test_the_home_folder_is_found():
    assert command("run=~/x").run == Path.home() / "x" and command("paths=[~/x]").paths == (Path.home() / "x",)


def test_a_path_must_be_given_after_the_equals_sign():
    with pytest.raises(ConfigError, match="run: expected a path after the =, got nothing"):
        command("run=")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    assert from_file(tmp_path, "\ufeffsteps: 3").steps == 3


def test_a_key_given_twice_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'lr' is given twice"):
        from_file(tmp_path, "lr: 1\nsteps: 2\nlr: 3\n")


def test_a_tag_builds_no_object(tmp_path):
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        from_file(tmp_path, "run: !!python/object/apply:os.system [echo]")


def test_broken_overrides_are_reported_with_all_other_mistakes():
    with pytest.raises(ConfigError) as error:
        command("lr", "steps=[1", "flip=perhaps", "colour=red")
    assert str(error.value).startswith("4 mistake(s)")


@pytest.mark.parametrize("key", ["OSEDiff-1.0.images.s", '"OSEDiff-1.0".images.s', "[OSEDiff-1.0].images.s"])
def test_a_name_may_hold_a_dot(key):
    separator = "" if key.startswith("[") else "."
    assert command(f"methods{separator}{key}=F").methods["OSEDiff-1.0"].images == {"s": Path("F")}


def test_the_last_name_may_hold_a_dot():
    assert command("methods.a.images.set.v1.0=F").methods["a"].images == {"set.v1.0": Path("F")}


def test_an_unknown_key_behind_a_name_says_how_a_dot_is_written():
    with pytest.raises(ConfigError, match=r"in brackets: 'methods\[OSEDiff-1\.0\]\.\.\.=\.\.\.'"):
        command("methods.OSEDiff-1.0.imges.s=F")


def test_an_override_reaches_into_a_list():
    assert command("sources=[{name: a}, {name: b}]", "sources.1.side=7").sources[1] == Source(name="b", side=7)


@pytest.mark.parametrize("text", ["no", "1e-5", "0o17", "2024", "a: b #c", "null", "caf\udce9", " x "])
def test_any_text_is_dumped_and_read_back(tmp_path, text):
    config = Command(title=text, run=text, methods={"a": Method(settings={"x": text})})
    assert from_file(tmp_path, dump_config(config)) == config
