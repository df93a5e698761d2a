from pathlib import Path

import pytest
import yaml

from mobilenet_pipeline import config

ROOT = Path(__file__).resolve().parents[1]


def edited(tmp_path: Path, keys: str, value: object) -> Path:
    """Write params.yaml with another value for a key of `digits`, or without the key."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    section = document["recipes"]["digits"]
    *path, last = keys.split(".")
    for key in path:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "pointwise_bfloat16"), (False, "float32")])
def test_auto_precision_is_bfloat16_on_processors_that_have_it(bfloat16, precision):
    recipe = config.load_recipe("cifar10", ROOT / "params.yaml")
    assert recipe.with_precision(bfloat16=bfloat16).candidate("scratch").precision == precision


def test_a_given_precision_stays_on_any_processor():
    recipe = config.load_recipe("digits", ROOT / "params.yaml")
    assert recipe.with_precision(bfloat16=True) == recipe


@pytest.mark.parametrize("name", yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["recipes"])
def test_every_recipe_of_the_project_loads(name):
    assert config.load_recipe(name, ROOT / "params.yaml").name == name


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("candidates.scratch.epoch", 3, "Extra inputs are not permitted"),
        ("candidates.scratch.epochs", "ten", "valid integer"),
        ("candidates.scratch.epochs", 0, "greater than 0"),
        ("candidates.pretrained.alpha", 0.3, "0.25, 0.5, 0.75, 1.0"),
        ("candidates.scratch.input_sizes", [], "at least 1 item"),
        ("gate.accuracy_floor", 90, "less than or equal to 1"),
        ("data.image_size", 0, "greater than 0"),
        ("data.image_size", None, "Field required"),
        ("split.seed", None, "Field required"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(tmp_path, key, value, words):
    with pytest.raises(ValueError, match=r"params\.yaml") as error:
        config.load_recipe("digits", edited(tmp_path, key, value))
    assert f"recipes.digits.{key}: " in str(error.value)
    assert words in str(error.value)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no recipe 'mnist'; there are: digits, cifar10, .*seed"):
        config.load_recipe("mnist", ROOT / "params.yaml")


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("recipes: [")
    with pytest.raises(ValueError, match=r"params\.yaml is not YAML"):
        config.load_recipe("digits", tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_run_from(tmp_path):
    with pytest.raises(ValueError, match="run this from the project's root"):
        config.load_recipe("digits", tmp_path / "params.yaml")


def test_a_training_has_either_epochs_or_cpu_minutes(tmp_path):
    path = edited(tmp_path, "candidates.scratch.cpu_minutes", 5.0)
    with pytest.raises(ValueError, match="give either epochs or cpu_minutes"):
        config.load_recipe("digits", path)


@pytest.mark.parametrize("shift", [32, 40])
def test_a_shift_must_be_less_than_the_image_size(tmp_path, shift):
    path = edited(tmp_path, "candidates.pretrained.shift", shift)
    with pytest.raises(ValueError, match=rf"pretrained\.shift is {shift}; .* less than data\.image_size, 32"):
        config.load_recipe("digits", path)


def test_the_largest_shift_is_one_less_than_the_image_size(tmp_path):
    path = edited(tmp_path, "candidates.pretrained.shift", 31)
    assert config.load_recipe("digits", path).candidate("pretrained").shift == 31


def test_two_recipes_cannot_share_a_registered_model(tmp_path):
    path = edited(tmp_path, "registered_model", "seed-mobilenet")
    with pytest.raises(ValueError, match="'seed-mobilenet' is also that of recipe seed; give each its own"):
        config.load_recipe("digits", path)


def test_a_recipe_cannot_be_changed():
    recipe = config.load_recipe("digits", ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


def test_an_unknown_candidate_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="there are: scratch, pretrained"):
        config.load_recipe("digits", ROOT / "params.yaml").candidate("best")


def test_a_rule_about_several_keys_does_not_print_the_section(tmp_path):
    with pytest.raises(ValueError, match="recipes") as raised:
        config.load_recipe("digits", edited(tmp_path, "candidates.scratch.shift", 40))
    assert str(raised.value).endswith(
        ": recipes.digits: candidates.scratch.shift is 40; it must be less than data.image_size, 32"
    )
