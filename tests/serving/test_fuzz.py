"""Random requests: none makes the service fail."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bento_fixtures import Service
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Encode = Callable[..., bytes]


def test_generated_requests_get_documented_answers(service: Service) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [str(Path(sys.executable).parent / "st"), "run", f"{service.address}/docs.json", "--checks", checks]
    options = ["--max-examples", "10", "--max-time", "40", "--seed", "1", "--warnings", "off"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_damaged_image_files_are_answered_or_refused(service: Service, encode: Encode, kind: str) -> None:
    chance, whole = random.Random(kind), encode(kind, (48, 40))
    for _ in range(60):
        file = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            file[chance.randrange(len(file))] = chance.randrange(256)
        answer = service.ask("POST", "/predict", files={"image": bytes(file[: chance.randint(1, len(file))])})
        assert answer.status_code in {200, 400}, file.hex()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), kind=st.sampled_from(["image/png", "multipart/form-data; boundary=x", "a/b", ""]))
def test_random_bytes_are_refused(service: Service, body: bytes, kind: str) -> None:
    for path in ("/predict", "/compare", "/predict_batch", "/input"):
        answer = service.ask("POST", path, content=body, headers={"Content-Type": kind} if kind else {})
        assert 400 <= answer.status_code < 500
