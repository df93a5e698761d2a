"""The OpenAPI page in a browser: it works under its policy, and loads from its service only."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bentoml._internal.server
import pytest
from waiting import LIMIT

from serving.service import html_page

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
STATIC = Path(bentoml._internal.server.__file__).parent
DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Classifier", "version": "1"},
    "paths": {path: {"post": {"responses": {"200": {"description": "OK"}}}} for path in ("/predict", "/compare")},
}


def test_the_page_shows_every_operation_and_asks_no_other_host(browser: Any) -> None:
    asked, errors = [], []

    def answer(route: Any) -> None:
        address = urlsplit(route.request.url)
        asked.append(address.hostname)
        if address.path == "/docs":
            page = html_page("docs.html")
            route.fulfill(body=page.body, headers=dict(page.headers))
        elif address.path == "/docs.json":
            route.fulfill(body=json.dumps(DOCUMENT), content_type="application/json")
        else:
            route.fulfill(path=STATIC / address.path.lstrip("/"))

    context = browser.new_context()
    tab = context.new_page()
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.route("**/*", answer)
    tab.goto("http://classifier.example/docs")
    api.expect(tab.locator(".opblock")).to_have_count(2, timeout=LIMIT * 1000)
    context.close()
    assert set(asked) == {"classifier.example"}
    assert not errors
