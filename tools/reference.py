"""Write docs/reference from the code: recipe keys, commands, environment variables, HTTP API.

`make reference` writes the pages; with `--check`, differences are errors and nothing is written.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import variables
from pydantic import BaseModel

from mobilenet_pipeline import cli, config
from mobilenet_pipeline.system import environment

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
COMMAND = "make reference"

SECTIONS: Mapping[str, type[BaseModel]] = {
    "Top level": config.Recipe,
    "data": config.Data,
    "split": config.Split,
    "candidates.NAME": config.Candidate,
    "serving": config.Serving,
    "gate": config.Gate,
    "gate.as_good_and_lighter": config.Lighter,
    "monitoring": config.Monitoring,
}
"""The headings of the recipe page, each with the model of its keys."""

CHAMPION = {
    "name": "cifar10-mobilenet",
    "accuracy": 0.9323,
    "image_shape": [32, 32, 3],
    "coverage": 0.95,
    "version": "4",
    "run_id": "2e26e8119b134ec693fd5eb46e43a263",
    "recipe": "cifar10",
    "candidate": "pretrained_int8",
    "data_digest": "c88a485015bd…",
    "git_commit": "67f244edc0fc…",
    "sha256": "fe0928ae4a55…",
    "class_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "test": {"accuracy": 0.9323, "loss": 0.2158, "top3_accuracy": 0.9931, "rows": 10_000},
    "verdict": {"promoted": True, "reason": "pretrained_int8 is promoted: …"},
}
"""A served version as `GET /model` describes it; the version of docs/results/cifar10."""

OPERATIONS = {
    "/livez": "Answers 200 while the process runs.",
    "/readyz": "Answers 200 once the service can take requests.",
    "/healthz": "Answers like `/livez`, for older probes.",
    "/metrics": "Counts for Prometheus, by model version.",
}
"""Addresses that BentoML adds and describes in its own words."""


def recipe_page() -> str:
    """Return the page of every key of a recipe, from the models in `config`."""
    parts = [
        _head("Recipe keys", "src/mobilenet_pipeline/config.py"),
        "A recipe is a section of `recipes` in [params.yaml](../../params.yaml). Every key is required, except those\n"
        "that say what holds without them. A recipe with `base: RECIPE` has the values of that recipe for the keys\n"
        "that it does not give. An unknown, missing or mistyped key is an error that names the key and its value.\n"
        "`NAME` is the name of a candidate, such as `scratch`.",
    ]
    for heading, model in SECTIONS.items():
        rows = [(f"`{key}`", *_type_of(schema), _meaning(schema)) for key, schema in _keys(model)]
        parts += [f"## {heading}", str(model.__doc__).partition("\n\n")[0]]
        parts.append(_table(("key", "type", "constraint", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _meaning(schema: Mapping[str, Any]) -> str:
    default = f" Without this key: `{schema['default']}`." if "default" in schema else ""
    return _text(schema["description"]) + default


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, schema in model.model_json_schema()["properties"].items():
        if (model, key) != (config.Recipe, "name"):  # not in the section: it is the section's own key
            yield key, schema


def _type_of(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type and the constraint of a JSON schema in words."""
    if "anyOf" in schema:
        kinds = [_type_of(choice) for choice in schema["anyOf"]]
        return " or ".join(kind for kind, _ in kinds), "; ".join(limit for _, limit in kinds if limit)
    if "$ref" in schema:
        return "section", ""
    if "enum" in schema:
        return "string", ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        kind, limit = _type_of(schema["items"])
        number = _number_of(schema) if "minItems" in schema else ""
        return f"list of {kind}s", ", ".join(part for part in (number, f"each {limit}" if limit else "") if part)
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    return schema["type"], ", ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)


def _number_of(schema: Mapping[str, Any]) -> str:
    least = schema["minItems"]
    bound = "exactly" if schema.get("maxItems") == least else "at least"
    return f"{bound} {least} value{'s' if least > 1 else ''}"


def commands_page() -> str:
    """Return the page of every command with its options, from the parser in `cli`."""
    root = cli.parser()
    parts = [
        _head("Commands", "src/mobilenet_pipeline/cli.py"),
        "Run the commands in the project's folder, after `. .venv/bin/activate`. Every command has `--help`. The exit\n"
        "code is 0 for success, 1 for an error that the last line explains, 2 for a wrong command line, 3 for\n"
        "something that needs a person (`status`, `monitor`), and 130 after Ctrl-C.",
        *_describe_command(root, 2),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield heading, description, usage and options of a command, then of its sub-commands."""
    yield f"{'#' * level} {parser.prog}"
    if parser.description:
        yield _text(parser.description)
    hidden = (argparse._SubParsersAction, argparse._HelpAction)
    arguments = [action for action in parser._actions if not isinstance(action, hidden)]
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    words = [parser.prog, *_usage(parser, arguments), *("COMMAND" for _ in groups)]
    yield "```text\n" + " ".join(words) + "\n```"
    rows = [
        (f"`{_signature(action)}`", _text(str(action.help) % {**vars(action), "prog": parser.prog}))
        for action in arguments
        if action.help not in (None, argparse.SUPPRESS)
    ]
    if rows:
        yield _table(("argument", "meaning"), rows)
    for group in groups:
        for command in dict.fromkeys(group.choices.values()):
            yield from _describe_command(command, level + (0 if level > 2 else 1))


def _usage(parser: argparse.ArgumentParser, arguments: Sequence[argparse.Action]) -> Iterator[str]:
    """Yield each argument as it stands in a command line; those of which one is required stand together."""
    exclusive = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    for action in arguments:
        word = _signature(action).rpartition(", ")[2]
        group = next((actions for actions in exclusive if action in actions), None)
        if group:
            if action is group[0]:
                yield "(" + " | ".join(_signature(option) for option in group) + ")"
        else:
            yield word if action.required and action.nargs != argparse.OPTIONAL else f"[{word}]"


def _signature(action: argparse.Action) -> str:
    """Return the argument as it is typed, like `--to VERSION`."""
    value = "" if action.nargs == 0 else _value_of(action)
    if not action.option_strings:
        return value
    return ", ".join(f"{option} {value}".strip() for option in action.option_strings)


def _value_of(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))


def environment_page() -> str:
    """Return the page of every environment variable that the code reads or sets."""
    read, preset = ("variable", "without it", "meaning"), ("variable", "value", "meaning")
    parts = [
        _head("Environment variables", "tools/variables.py"),
        "Relative paths start in the project's folder.",
        "## Data and weights",
        _variables(read, variables.DATA),
        "## Stores and servers",
        _variables(read, variables.STORES),
        "## Telling people",
        _variables(read, variables.PEOPLE),
        "## Training",
        _variables(read, variables.TRAINING),
        "## Service",
        _variables(read, variables.SERVICE),
        "## Containers",
        _variables(read, variables.COMPOSE),
        "## Telemetry",
        "Every `mobilenet-pipeline` command and every stage sets these variables, unless you have set them. Set them\n"
        "yourself before you call a framework's own command, such as `prefect worker`.",
        _variables(preset, variables.TELEMETRY),
        "## Frameworks",
        "Every command and stage sets these variables, too, unless you have set them.",
        _variables(preset, variables.FRAMEWORKS),
        "## Your settings for other projects",
        "What you have set for other projects cannot change a result. Every command and stage sets these variables,\n"
        "whatever their value was.",
        _variables(preset, variables.FIXED),
        "It leaves these variables out:",
        _table(("of", "variables"), variables.REMOVED),
        "If a proxy is set, `NO_PROXY` and `no_proxy` also get this machine's addresses. A command refuses a proxy or\n"
        "an `SSL_CERT_FILE` that HTTP clients cannot use, and names the variable. `make` leaves out what would make\n"
        "pip or uv install elsewhere or other versions; the Makefile lists it. Package indexes stay in effect.",
        "## Set by the program",
        "The program sets these variables for its own processes. Do not set them.",
        _variables(("variable", "set by", "meaning"), variables.INTERNAL),
    ]
    return "\n\n".join(parts) + "\n"


def _variables(columns: Sequence[str], group: variables.Variables) -> str:
    return _table(columns, [(f"`{name}`", value, meaning) for name, (value, meaning) in group.items()])


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of a service whose champion is `CHAMPION`, as `GET /docs.json` answers it."""
    with tempfile.TemporaryDirectory() as store:
        os.environ.setdefault("BENTOML_HOME", store)  # BentoML makes folders when it is imported
        from serving import openapi, service

        classifier: Any = service.Classifier  # what BentoML's decorators make of the class
        models = {"champion": CHAMPION, "challenger": None, "refused": None}
        return openapi.document(classifier.openapi_spec.asdict(), models)


def _order(operation: tuple[str, str, Any]) -> tuple[bool, bool, bool, str]:
    """Return the place of an operation on the page: /predict first, BentoML's own addresses last."""
    path, method, _ = operation
    return path in OPERATIONS, method == "get", path != "/predict", path


def http_api_page() -> str:
    """Return the page of every address with its body, answer and errors, from the OpenAPI document."""
    paths = openapi_document()["paths"].items()
    operations = sorted(((path, *operation) for path, methods in paths for operation in methods.items()), key=_order)
    parts = [
        _head("HTTP API", "serving/openapi.py"),
        "The running service shows the same document as a page at `/docs`, and as JSON at `/docs.json`.\n"
        "Requests need the header `Authorization: Bearer KEY` if `SERVING_API_KEY` is set. `/`, `/livez`, `/readyz`\n"
        "and `/healthz` stay open. Answers of a model name its version in the header `x-model-version`.",
    ]
    for path, method, operation in operations:
        parts += [f"## {method.upper()} {path}", OPERATIONS.get(path) or _operation_text(operation)]
        if body := operation.get("requestBody"):
            rows = [(f"`{kind}`", _fields_of(content)) for kind, content in body["content"].items()]
            parts += ["Request body, one of:", _table(("content type", "content"), rows)]
        for kind, content in operation["responses"]["200"].get("content", {}).items():
            parts.append(f"Answer: 200, `{kind}`")
            if "example" in content:
                parts.append(f"```json\n{_json(content['example'])}\n```")
    parts += ["## Errors", "Every error has the same body; `code` is for programs, `message` is for people."]
    parts.append('```json\n{"error": {"code": "…", "message": "…", "field": "…"}}\n```')
    parts.append(_table(("status", "code", "message", "addresses"), _errors(operations)))
    return "\n\n".join(parts) + "\n"


def _operation_text(operation: Mapping[str, Any]) -> str:
    return _text(operation.get("summary") or operation.get("description") or "")


def _json(document: Any) -> str:
    """Return the document with every list of plain values on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda values: re.sub(r"(?<=\[)\s+|\s+(?=\])", "", _text(values[0])), text)


def _fields_of(content: Mapping[str, Any]) -> str:
    fields = content.get("schema", {}).get("properties", {})
    if not fields:
        return "the bytes"
    kinds = {key: "several files" if schema.get("type") == "array" else "a file" for key, schema in fields.items()}
    return ", ".join(f"field `{key}`: {kind}" for key, kind in kinds.items())


def _errors(operations: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return a row per status, code and message, with the addresses that answer it."""
    addresses: dict[tuple[str, str, str], list[str]] = {}
    for path, _, operation in operations:
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            examples = response.get("content", {}).get("application/json", {}).get("examples", {})
            faults = [example["value"]["error"] for example in examples.values()]
            rows = [(fault["code"], fault["message"]) for fault in faults] or [("–", response["description"])]
            for code, message in rows:
                addresses.setdefault((status, code, message), []).append(path)
    return [
        (status, code if code == "–" else f"`{code}`", _text(message), ", ".join(f"`{path}`" for path in paths))
        for (status, code, message), paths in sorted(addresses.items())
    ]


def _head(title: str, source: str) -> str:
    return f"# {title}\n\n<!-- Written by `{COMMAND}` from {source}; do not edit this page. -->"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(text: str) -> str:
    return " ".join(text.split())


PAGES = {
    "recipe.md": recipe_page,
    "commands.md": commands_page,
    "environment.md": environment_page,
    "http-api.md": http_api_page,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with `--check` say which of them differ. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    chosen = parser.parse_args(arguments)
    environment.prepare()
    pages = {FOLDER / name: make() for name, make in PAGES.items()}
    outdated = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in outdated:
        if chosen.check:
            print(f"docs/reference/{path.name} is not what the code says: run `{COMMAND}`", file=sys.stderr)
        else:
            path.write_text(pages[path], encoding="utf-8")
            print(f"wrote docs/reference/{path.name}")
    return 1 if chosen.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
