"""The environment variables of this process and its children.

Here, and only here, is decided what of a user's settings for other projects reaches the frameworks.
"""

import io
import os
import pwd
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from dotenv.parser import parse_stream

from mobilenet_pipeline.system import imports

TELEMETRY_OFF = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
QUIET = {
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

LOG_FORM = "MOBILENET_PIPELINE_LOG"
"""The variable that chooses the form of log lines: `text` or `json`."""

# TensorFlow uses oneDNN by default only on processors with AVX-512. On others, too, a step takes 25 % less time.
SPEED = {"TF_ENABLE_ONEDNN_OPTS": "1"}

DEFAULTS = Path(__file__).resolve().parent / "defaults"
"""A folder with the settings of Keras and Matplotlib that count instead of those of the home folder."""
FIXED = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": str(DEFAULTS),
    "MATPLOTLIBRC": str(DEFAULTS / "matplotlibrc"),
    "MPLBACKEND": "agg",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PYTHONUTF8": "1",
}
"""Variables with one right value, whatever the user has set."""
KERAS_DOWNLOADS = "MOBILENET_PIPELINE_KERAS_HOME"
"""The variable with the KERAS_HOME of the user, in which Keras keeps its downloads."""

_CLIENT_TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"

REMOVED = {
    "Git": ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"),
    "Keras": ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED", "TF_USE_LEGACY_KERAS"),
    "MLflow": (
        *("MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
        *("MLFLOW_LOCK_MODEL_DEPENDENCIES", "MLFLOW_REQUIREMENTS_INFERENCE_RAISE_ERRORS", "MLFLOW_RUN_ID"),
        *("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_REGISTRY_STORE_URI"),
    ),
    "Prefect": ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_API_BASE_PATH"),
    "Python": ("PYTHONOPTIMIZE", "PYTHONWARNINGS"),
    "pip": ("PIP_PREFIX", "PIP_ROOT", "PIP_TARGET", "PIP_USER"),
    "uv": ("UV_PROJECT", "UV_REQUIRE_HASHES", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR"),
}
"""By owner, variables that would change what the pipeline computes or where it writes."""

SERVERS = "servers.env"
"""The committed file with the settings of a team's servers, in the current folder."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


def prepare() -> None:
    """Replace this process's environment by `prepared`, and hide from Keras what nobody here needs.

    Call this before importing a framework.

    What the environment lacks comes from `servers.env` in the current folder, the settings of a team's servers.

    A character that the terminal cannot show is printed as its number, as `\\u2026`; it would raise an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    variables = prepared({**team_settings(), **os.environ})
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    imports.lean_keras()


def team_settings(path: Path = Path(SERVERS)) -> dict[str, str]:
    """Return the variables of a file in dotenv form; none if there is no file.

    Raises ValueError, naming the file, if it is not UTF-8, and naming the line for a line that is no setting.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from None
    for binding in bindings:
        if binding.error or (binding.key and not binding.value):
            line = binding.original.string.strip()
            raise ValueError(f"{path}, line {binding.original.line}: {line[:80]!r} is no setting; write NAME=value")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value}


def prepared(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that our processes get for those of the user.

    Telemetry is off and frameworks are quiet unless the user has set their variables. `FIXED` is set, `REMOVED` is left
    out, and connections to this machine pass no proxy. Applied to its own result, it changes nothing. Raises ValueError
    with the name of a setting with which no connection can be made.
    """
    check_network(variables)
    removed = {name for names in REMOVED.values() for name in names}
    kept = {name: value for name, value in variables.items() if name not in removed}
    home = kept.get("KERAS_HOME")
    if home and home != FIXED["KERAS_HOME"]:
        kept[KERAS_DOWNLOADS] = home
    return {**TELEMETRY_OFF, **QUIET, **SPEED, **kept, **FIXED, **_no_proxy(kept), **_user(kept)}


def keras_downloads() -> Path:
    """Return the folder in which Keras keeps its downloads: the user's KERAS_HOME, or ~/.keras."""
    return Path(os.environ.get(KERAS_DOWNLOADS) or "~/.keras").expanduser()


def check_network(variables: Mapping[str, str]) -> None:
    """Raise ValueError if HTTP clients would fail on a proxy or on a file of certificates, even without a request."""
    for name in (spelling for proxy in _PROXIES for spelling in (proxy, proxy.lower())):
        value = variables.get(name, "")
        scheme = urlsplit(value).scheme if "://" in value else "http"
        if scheme in ("socks5", "socks5h") and not find_spec("socksio"):
            raise ValueError(
                f"{name}: a proxy of {scheme} needs the package socksio; install it here (`pip install socksio`), give "
                "an http:// proxy, or unset the variable"
            )
        if scheme not in ("http", "https", "socks5", "socks5h"):
            raise ValueError(f"{name}: {scheme}:// is no kind of proxy; give http:// or socks5://, or unset it")
    certificates = variables.get("SSL_CERT_FILE", "")
    if certificates and not Path(certificates).is_file():
        raise ValueError(f"SSL_CERT_FILE: there is no file {certificates}; correct the path or unset the variable")


def _user(variables: Mapping[str, str]) -> dict[str, str]:
    """Return USER for a user without a name, as in a container: DVC fails without a name."""
    if any(variables.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return {}
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"USER": f"uid-{os.getuid()}"}
    return {}


def _no_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY and no_proxy with this machine's addresses in addition; nothing if there is no proxy.

    Clients read the one or the other, so both get the hosts of both. A lone `*` means every host, but only alone.
    """
    if not any(variables.get(name) or variables.get(name.lower()) for name in _PROXIES):
        return {}
    values = [variables.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host for value in values for host in re.split(r"[\s,]+", value) if host]
    # httpx fails on networks of IPv6, and on brackets.
    hosts = [host.strip("[]") for host in hosts if not re.search(r":.*/", host) or "://" in host]
    joined = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    return {"NO_PROXY": joined, "no_proxy": joined}


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow's client try a request three times in the `with` body; its default of eight takes four minutes."""
    if _CLIENT_TRIES in os.environ:
        yield
        return
    os.environ[_CLIENT_TRIES] = "2"
    try:
        yield
    finally:
        os.environ.pop(_CLIENT_TRIES, None)


def logs_as_json() -> bool:
    """Return whether log lines are wanted as JSON. Raises ValueError for an unknown form."""
    form = os.environ.get(LOG_FORM, "text")
    if form not in ("text", "json"):
        raise ValueError(f"{LOG_FORM}={form!r} is no form of log lines; set it to text or json")
    return form == "json"
