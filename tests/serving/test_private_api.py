"""The private parts of BentoML that the project uses. A test fails here when a new BentoML moves one of them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml
import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from mobilenet_pipeline.config import Recipe
from mobilenet_pipeline.release import bento
from serving import settings
from serving.service import Classifier


@contextmanager
def needed(what: str, module: str) -> Iterator[None]:
    """Fail with a sentence if the block does not find `what`, which `module` of this project uses."""
    try:
        yield
    except Exception as error:
        pytest.fail(f"BentoML {bentoml.__version__} has moved {what}; {module} uses it ({error!r})", pytrace=False)


def test_the_worker_program_takes_its_options() -> None:
    with needed(f"the worker program {settings.PROGRAM} or one of its options", "serving/start.py"):
        program = importlib.import_module(settings.PROGRAM).main
        options = {option for parameter in program.params for option in parameter.opts}
        assert {"bento_identifier", "--fd", "--worker-id", "--timeout-keep-alive"} <= options


@pytest.mark.parametrize("file", ["swagger-ui.css", "swagger-ui-bundle.js"])
def test_swagger_ui_is_beside_the_server(file: str) -> None:
    with needed(f"static_content/{file} of bentoml._internal.server", "serving/docs.html"):
        server = importlib.import_module("bentoml._internal.server")
        assert (Path(str(server.__file__)).parent / "static_content" / file).is_file()


def test_a_form_part_has_its_headers_before_its_body() -> None:
    with needed("on_headers_finished of Starlette's parser of a form", "serving/uploads.py (Form)"):
        parser = MultiPartParser(Headers(), None)
        assert callable(parser.on_headers_finished)
        assert parser._current_part.content_disposition is None
        assert parser._current_part.item_headers == []


def test_the_server_sets_the_current_service() -> None:
    with needed("get_current_service, or set_current_service of its server", "serving/service.py (_current)"):
        app = importlib.import_module("_bentoml_impl.server.app")
        instance = object()
        app.set_current_service(instance)
        try:
            assert bentoml.get_current_service() is instance
        finally:
            app.set_current_service(None)


def test_a_service_has_its_methods_by_route() -> None:
    with needed("Service.apis, or route or func of an API", "serving/service.py (behind_front_door)"):
        methods = {api.route: api.func.__name__ for api in Classifier.apis.values()}
        assert methods["/predict_batch"] == "predict_batch"


def test_a_service_has_an_openapi_document() -> None:
    with needed("Service.openapi_spec", "serving/service.py (describe_api)"):
        assert "/predict" in Classifier.openapi_spec.asdict()["paths"]


def test_the_store_has_its_folders(bento_store: Path, served_recipe: Recipe) -> None:
    with needed("the folders bentos/NAME/VERSION/src or models/NAME/VERSION of its store", "release/bento.py"):
        folder = bento_store / "bentos" / str(bento.live(served_recipe)).replace(":", "/")
        assert (folder / "src" / bento.ROLES).is_file()
        assert all((model / "model.yaml").is_file() for model in bento.served_models(served_recipe).values() if model)


def test_an_image_has_its_user_by_number() -> None:
    with needed("BENTO_UID_GID of its images", "deploy/compose.yaml and deploy/kubernetes.yaml"):
        assert importlib.import_module("bentoml._internal.container.generate").BENTO_UID_GID == 1034
