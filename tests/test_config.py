import re
from pathlib import Path

import pytest
import yaml
from dvc.utils import hydra

from mobilenet_pipeline import config

ROOT = Path(__file__).resolve().parents[1]


def edited(tmp_path: Path, keys: str, value: object, recipe: str = "digits") -> Path:
    """Write params.yaml with another value for a key of the recipe, or without the key."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    section = document["recipes"][recipe]
    *path, last = keys.split(".")
    for key in path:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(("bfloat16", "precision"), [(True, "pointwise_bfloat16"), (False, "float32")])
def test_auto_precision_is_bfloat16_on_processors_that_have_it(bfloat16, precision):
    recipe = config.load_recipe("cifar10", ROOT / "params.yaml")
    assert recipe.with_precision(bfloat16=bfloat16).candidate("scratch").precision == precision


def test_a_given_precision_stays_on_any_processor():
    recipe = config.load_recipe("digits", ROOT / "params.yaml")
    assert recipe.with_precision(bfloat16=True) == recipe


@pytest.mark.parametrize("name", config.recipe_names(ROOT / "params.yaml"))
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
        ("data.image_size", 27, "greater than or equal to 28"),
        ("data.channel_mean", [0.5, 0.5], "at least 3 items"),
        ("data.channel_std", [0.5] * 4, "at most 3 items"),
        ("data.class_names", ["cat"], "at least 2 items"),
        ("data.class_names", ["cat", "dog", "cat"], "it names 'cat' twice; name every class once"),
        ("split.validation_share", 0.0, "greater than 0 (it is 0.0)"),
        ("split.validation_share", 1.0, "less than 1 (it is 1.0)"),
        ("data.image_size", None, "Field required"),
        ("split.seed", None, "Field required"),
        ("registered_model", "Digits-MobileNet", "lower-case letters"),
        ("registered_model", "team/digits", "lower-case letters"),
        ("registered_model", "a" * 64, "at most 63"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(tmp_path, key, value, words):
    with pytest.raises(ValueError, match=r"params\.yaml") as error:
        config.load_recipe("digits", edited(tmp_path, key, value))
    assert f"recipes.digits.{key}: " in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "mobilenet_v3"}, "or mobilenet_v3_small?); use one of mobilenet, mobilenet_v2"),
        ({"strides": "stem-1"}, "strides is stem-1, which is for `architecture: mobilenet` only; use stock"),
        ({"muon_rate": 0.1}, "muon_rate is 0.1, which is for `architecture: mobilenet` only; use null"),
        ({"precision": "pointwise_bfloat16"}, "only; use auto for mobilenet_v3_small"),
        ({"weights": "bundled"}, "weights is bundled, which is for `architecture: mobilenet` only; use none"),
        ({"weights": "imagenet"}, "alpha is 0.25; ImageNet weights of mobilenet_v3_small exist for 0.75, 1.0"),
        ({"frozen": 13}, "frozen is 13; at most 12 blocks of mobilenet_v3_small can be frozen"),
        ({"input_sizes": [64, 80]}, "input_sizes has 80; mobilenet_v3_small takes multiples of 32 pixels"),
    ],
)
def test_a_setting_that_the_architecture_lacks_is_refused(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        small_v3(**changes)


def test_auto_precision_of_another_architecture_is_float32_on_every_processor():
    assert small_v3(precision="auto").with_precision(bfloat16=True).precision == "float32"


def test_a_candidate_without_architecture_is_a_mobilenet_v1():
    assert config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch").architecture == "mobilenet"


def test_fewer_replicas_share_the_global_batch_and_keep_the_learning_rate_of_all():
    scratch = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
    few = scratch.model_copy(update={"muon_rate": 0.01}).spread(planned=4, replicas=2)
    # Both are multiplied by the replicas that train.
    assert (few.batch_size, few.learning_rate, few.muon_rate) == (64, 0.1, 0.02)


def test_as_many_replicas_as_planned_change_nothing():
    scratch = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
    assert scratch.spread(planned=4, replicas=4) is scratch


def test_replicas_that_cannot_share_a_batch_are_refused():
    scratch = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch")
    with pytest.raises(ValueError, match="3 replicas cannot share a global batch of 128 images equally"):
        scratch.spread(planned=4, replicas=3)


def small_v3(**changes: object) -> config.Candidate:
    """A candidate of another architecture, with what it needs and some changes."""
    scratch = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch").model_dump()
    settings = {"architecture": "mobilenet_v3_small", "strides": "stock", "input_sizes": [64]}
    return config.Candidate.model_validate(scratch | settings | changes)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no recipe 'mnist'; there are: digits, cifar10, .*seed"):
        config.load_recipe("mnist", ROOT / "params.yaml")


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "params.yaml").write_text("recipes: [")
    with pytest.raises(ValueError, match=r"params\.yaml is not YAML"):
        config.load_recipe("digits", tmp_path / "params.yaml")


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes("recipes: {bäume: {}}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"params\.yaml is not text in UTF-8"):
        config.load_recipe("digits", tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_run_from(tmp_path):
    with pytest.raises(ValueError, match="run this from the project's root"):
        config.load_recipe("digits", tmp_path / "params.yaml")


def test_a_recipe_has_the_values_of_its_base_except_its_own():
    base, heir = (config.load_recipe(name, ROOT / "params.yaml") for name in ("cifar10", "cifar10_10m"))
    own = {"input_sizes": [128], "pixel_range": "signed", "epochs": None, "cpu_minutes": 20, "distorted": 0.0}
    assert heir.candidate("pretrained") == base.candidate("pretrained").model_copy(update=own)
    assert heir.gate == base.gate


def test_an_edit_of_a_base_reaches_its_heirs(tmp_path):
    path = edited(tmp_path, "gate.megabytes", 3.5, "cifar10")
    assert config.load_recipe("seed", path).gate.megabytes == 3.5


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("cifar", "recipes.cifar10.base: no recipe 'cifar'; there are: "),
        (["digits"], "recipes.cifar10.base: no recipe ['digits']; "),
        ("cifar10", "recipes.cifar10.base: cifar10 → cifar10 is a circle"),
        ("seed", "recipes.seed.base: cifar10 → seed → cifar10 is a circle"),
    ],
)
def test_an_impossible_base_is_named(tmp_path, base, words):
    with pytest.raises(ValueError, match=r"params\.yaml") as error:
        config.load_recipe("cifar10", edited(tmp_path, "base", base, "cifar10"))
    assert words in str(error.value)


def test_the_project_s_recipes_use_no_anchors():
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert not re.search(r"[:\[,{] [&*]\w|<<:", text)  # `dvc exp run -S` would write them out


def test_dvc_s_set_param_changes_one_line_and_stays_readable(tmp_path):
    before = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(before, encoding="utf-8")
    hydra.apply_overrides(tmp_path / "params.yaml", ["recipes.digits.candidates.scratch.weight_decay=0.00005"])
    after = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed == ["        weight_decay: 5e-05"]
    assert config.load_recipe("digits", tmp_path / "params.yaml").candidate("scratch").weight_decay == 0.00005


@pytest.mark.parametrize("number", ["5e-4", "5.0e-4", "0.0005", "5E-4"])
def test_numbers_are_read_as_dvc_reads_them(tmp_path, number):
    text = (ROOT / "params.yaml").read_text().replace("weight_decay: 5.0e-4", f"weight_decay: {number}", 1)
    (tmp_path / "params.yaml").write_text(text)
    assert config.load_recipe("digits", tmp_path / "params.yaml").candidate("scratch").weight_decay == 0.0005


def test_a_key_that_is_given_twice_is_named(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("alpha: 0.25", "alpha: 0.25\n        alpha: 0.5", 1)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml is not YAML: line \d+: found duplicate key \"alpha\""):
        config.load_recipe("digits", tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["a/b", "2024", "a@b", "é"])
def test_a_recipe_s_name_must_suit_folders_and_stages(tmp_path, name):
    (tmp_path / "params.yaml").write_text(f"recipes: {{{name}: {{}}}}")
    with pytest.raises(ValueError, match="use letters, digits, '_' and '-' only"):
        config.load_recipe(name, tmp_path / "params.yaml")


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


@pytest.mark.parametrize("names", [["only"], ["a", "b", "c", "d", "e"]], ids=["one", "five"])
def test_a_recipe_has_one_to_five_candidates_of_any_name(tmp_path, names):
    one = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch").model_dump()
    recipe = config.load_recipe("digits", edited(tmp_path, "candidates", dict.fromkeys(names, one)))
    assert list(recipe.candidates) == list(recipe.artefacts) == names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least 1 item"),
        (list("abcdef"), "at most 5 items"),
        (["my-net"], "'my-net' is no name of a candidate"),
        (["net", "net_int8"], "net_int8 is called like another candidate's twin"),
    ],
)
def test_impossible_candidates_are_refused(tmp_path, names, words):
    one = config.load_recipe("digits", ROOT / "params.yaml").candidate("scratch").model_dump()
    with pytest.raises(ValueError, match=re.escape(words)):
        config.load_recipe("digits", edited(tmp_path, "candidates", dict.fromkeys(names, one)))


def test_every_candidate_has_a_twin_in_the_second_number_format(tmp_path):
    recipe = config.load_recipe("digits", edited(tmp_path, "serving.precision", ["float32", "int8"]))
    assert list(recipe.artefacts) == ["scratch", "scratch_int8", "pretrained", "pretrained_int8"]
    assert recipe.artefacts["scratch_int8"] == ("scratch", "int8")
    assert recipe.candidate("scratch_int8") is recipe.candidate("scratch")


def test_the_first_number_format_has_the_candidate_s_name(tmp_path):
    recipe = config.load_recipe("digits", edited(tmp_path, "serving.precision", ["int8"]))
    assert recipe.artefacts["scratch"].precision == "int8"


def test_a_number_format_is_named_once(tmp_path):
    with pytest.raises(ValueError, match="names int8 twice"):
        config.load_recipe("digits", edited(tmp_path, "serving.precision", ["int8", "int8"]))


def test_an_empty_value_leaves_out_a_candidate_of_the_base(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    line = "pretrained: {input_sizes: [160], cpu_minutes: 60}"
    assert line in text
    (tmp_path / "params.yaml").write_text(text.replace(line, "pretrained:"))
    recipe = config.load_recipe("cifar10_30m", tmp_path / "params.yaml")
    assert list(recipe.candidates) == ["scratch"]


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
