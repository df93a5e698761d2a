"""The address of a cluster."""

import pytest

from mobilenet_pipeline.cluster import setting


@pytest.fixture(autouse=True)
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "find_spec", lambda name: name)


def test_there_is_no_cluster_without_a_setting():
    assert setting.address() is None


@pytest.mark.parametrize("text", ["auto", "local", "ray://head.example.com:10001", "ray://[::1]:10001"])
def test_an_address_is_returned_unchanged(text):
    assert setting.address(text) == text


def test_the_environment_names_a_cluster(monkeypatch):
    monkeypatch.setenv(setting.CLUSTER, "auto")
    assert setting.address() == "auto"


def test_the_given_address_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv(setting.CLUSTER, "auto")
    assert setting.address("local") == "local"


@pytest.mark.parametrize(
    "text", ["yes", "ray://", "ray://head", "ray://head:", "ray://head:0", "ray://head:99999", "http://h:10001", "Auto"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"is no address: give auto .* ray://HOST:10001 .* or local"):
        setting.address(text)


def test_missing_ray_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(setting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Ray, which is not installed: make cluster"):
        setting.address("auto")


def test_a_cluster_beside_tf_config_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="both name machines"):
        setting.address("auto")
