"""The environment variables of the service: their defaults, their values, and what a wrong one says."""

import pytest

from serving import settings


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SERVING_CORES": "1"}, (1, 1)),
        ({"SERVING_CORES": "2"}, (1, 2)),
        ({"SERVING_CORES": " 8 "}, (4, 2)),
        ({"SERVING_CORES": "8", "SERVING_WORKERS": "1"}, (1, 8)),
        ({"SERVING_CORES": "8", "SERVING_WORKERS": ""}, (4, 2)),
    ],
)
def test_two_cores_make_a_worker_with_two_threads(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (settings.processes(), settings.threads()) == expected


def test_a_connection_outlives_a_proxy_s_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.keep_alive() > 60
    monkeypatch.setenv("SERVING_KEEP_ALIVE", "5")
    assert settings.keep_alive() == 5


@pytest.mark.parametrize("name", ["SERVING_CORES", "SERVING_WORKERS", "SERVING_KEEP_ALIVE"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "two"])
def test_a_wrong_number_is_named_with_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}'; set it to a whole number from 1"):
        settings.check()


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_an_error(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_API_KEY", key)
    with pytest.raises(ValueError, match="SERVING_API_KEY is empty; set it to a key, or unset it"):
        settings.check()


def test_images_are_kept_for_a_1_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settings.keep_images()
    monkeypatch.setenv("SERVING_KEEP_IMAGES", "1")
    assert settings.keep_images()
    monkeypatch.setenv("SERVING_KEEP_IMAGES", "true")
    with pytest.raises(ValueError, match="SERVING_KEEP_IMAGES is 'true'; set it to 1"):
        settings.check()
