"""Every environment variable that the code reads or sets, for docs/reference/environment.md."""

from collections.abc import Mapping

from mobilenet_pipeline.system import environment

Variables = Mapping[str, tuple[str, str]]
"""Name of a variable → (value without it, meaning)."""

DATA: Variables = {
    "CIFAR10_ARCHIVE": (
        "the official address",
        "Path or URL of the CIFAR-10 archive, binary or python version.",
    ),
    "IMAGENET_WEIGHTS_DIR": (
        "Keras downloads the weights",
        "Folder with the ImageNet weights, for example `mobilenet_7_5_224_tf_no_top.h5` for α 0.75.",
    ),
    "MOBILENET_PIPELINE_CACHE": ("`~/.cache/mobilenet-pipeline`", "Folder for downloads."),
}
STORES: Variables = {
    "MLFLOW_TRACKING_URI": ("`mlflow.db` in the workspace", "MLflow's store: a server, or another database."),
    "MLFLOW_REGISTRY_URI": ("that of `MLFLOW_TRACKING_URI`", "MLflow's registry, if it is another store."),
    "MLFLOW_S3_ENDPOINT_URL": ("Amazon S3", "Address of the S3 server with MLflow's artefacts."),
    "MOBILENET_PIPELINE_RECORDS": (
        "`records` in the workspace",
        "SQLAlchemy URL of the database with the records of all workspaces: PostgreSQL, or SQLite on a shared disk.",
    ),
    "MOBILENET_PIPELINE_DVC_REMOTE": (
        "the remote of `.dvc/config`",
        "URL of the team's DVC remote. Promotions are pushed to it, and stages are restored from it.",
    ),
    "MOBILENET_PIPELINE_GIT_REMOTE": (
        "the tag stays in the workspace",
        "Git remote that gets the tag with the `dvc.lock` of each promotion.",
    ),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": ("`false`", "MLflow's progress bars."),
    "PREFECT_API_URL": (
        "the workspace's server if it runs, else a temporary server",
        "API address of a Prefect server. `.env`, `prefect.toml` and a profile of Prefect may set it, too.",
    ),
    "PREFECT__SERVER_EPHEMERAL": ("`1` for the temporary server", "A Prefect server without pages and schedules."),
    "PREFECT_HOME": ("`.prefect`", "Prefect's database, results and logs."),
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": (
        "`CRITICAL` in `run` and `ui`",
        "Level of Prefect's messages in the terminal.",
    ),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": ("`120`", "Time that a temporary Prefect server has to start."),
    "BENTOML_HOME": ("`.bentoml`", "BentoML's store: models, Bentos, and the pointer to the live Bento."),
}
PEOPLE: Variables = {
    "MOBILENET_PIPELINE_LOG": ("`text`", "Form of log lines: `text`, or `json` with an object a line."),
    "MOBILENET_PIPELINE_TEXTFILES": (
        "the recipe's reports",
        "Folder that Prometheus's node exporter collects; it gets the pipeline's gauges.",
    ),
    "MOBILENET_PIPELINE_PRICE_PER_HOUR": (
        "no price",
        "Price of an hour of this machine, as a number and a currency: `0.48 EUR`. Stages get the price of their time.",
    ),
    "SENDGRID_API_KEY": ("no e-mail", "SendGrid's API key, for `alerts --email`."),
}
TRAINING: Variables = {
    "MOBILENET_PIPELINE_JOBS": (
        "1 or 2",
        "Stages of a run that may run at the same time; `run --jobs` overrides it.",
    ),
    "TF_CONFIG": ("one machine", "Cluster of a training on several machines, as JSON."),
    "MOBILENET_PIPELINE_PEER_SECONDS": ("`1800`", "The longest time that a worker of TF_CONFIG waits for the others."),
    "MOBILENET_PIPELINE_CLUSTER": (
        "this machine",
        "The Ray cluster of the trainings: `auto`, `ray://HOST:10001` or `local`; `run --cluster` sets it.",
    ),
    "TF_DETERMINISTIC_OPS": ("unset", "`1` makes TensorFlow use repeatable operations; `run --deterministic` sets it."),
    "TF_NUM_INTRAOP_THREADS": ("all cores", "TensorFlow's threads for one operation."),
    "MOBILENET_PIPELINE_TENSORBOARD": (
        "no logs",
        "Folder for TensorBoard's logs, as `FOLDER/RECIPE/CANDIDATE/TIME`; `run --tensorboard` sets it to `logs`.",
    ),
    "CUDA_VISIBLE_DEVICES": ("all GPUs", "The GPUs that TensorFlow uses, by number."),
}
SERVICE: Variables = {
    "SERVING_API_KEY": (
        "no key",
        "Key that requests must send as `Authorization: Bearer KEY`. The page and the health checks stay open.",
    ),
    "SERVING_CORES": ("all cores of the process", "Cores that the service may use."),
    "SERVING_WORKERS": (
        "one for two cores",
        "Worker processes. Each has one HTTP thread and `cores / workers` others.",
    ),
    "SERVING_RECORD": (
        "`.bentoml/answers/MODEL/PORT` with `serve`, else none",
        "Folder for the record of answers: JSON lines, 50 MB per worker.",
    ),
    "SERVING_KEEP_ALIVE": ("`75`", "Seconds after which an idle connection is closed."),
    "SERVING_KEEP_IMAGES": ("unset", "`1` adds the decoded image to the record of answers."),
}
COMPOSE: Variables = {
    "SERVING_IMAGE": ("`digits-mobilenet:live`", "Image that `deploy/compose.yaml` runs."),
    "SERVING_PORT": ("`3000`", "Port on 127.0.0.1 that `deploy/compose.yaml` publishes."),
}
INTERNAL: Variables = {
    "MOBILENET_PIPELINE_PARENT_RUN": ("the flow", "MLflow run that a training belongs to."),
    "TF_FORCE_GPU_ALLOW_GROWTH": (
        "runs with several jobs",
        "`true`, unless you have set it: trainings side by side share the memory of a GPU.",
    ),
    "MOBILENET_PIPELINE_KERAS_HOME": ("every command", "Your `KERAS_HOME`, with Keras's downloads."),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (
        "every command but trainings",
        "`2`, to answer within seconds if MLflow is away.",
    ),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": ("the check of MLflow", "`5` seconds while it writes to the artefact store."),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": ("`ui`", "`false`: MLflow's server starts no helper processes."),
    "PREFECT__FLOW_RUN_ID": ("the flow", "Flow run that a training belongs to."),
    "PREFECT_SERVER_UI_API_URL": ("`ui`, `schedule`", "API address that the pages of the started server ask."),
    "SERVING_LIVE": ("`serve`", "File that names the live Bento. `bentoml serve .` needs it if several are live."),
    "PROMETHEUS_MULTIPROC_DIR": ("`serve`", "Folder in which the workers of one server count."),
}
MEANINGS = {
    "BENTOML_DO_NOT_TRACK": "BentoML's usage reports are off.",
    "DO_NOT_TRACK": "Usage reports of tools that follow this convention are off.",
    "DVC_NO_ANALYTICS": "DVC's usage reports are off.",
    "GX_ANALYTICS_ENABLED": "Great Expectations' usage reports are off.",
    "MLFLOW_DISABLE_TELEMETRY": "MLflow's usage reports are off.",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "Prefect's usage reports are off.",
    "GRPC_VERBOSITY": "Only errors of gRPC are logged.",
    "TF_CPP_MIN_LOG_LEVEL": "Only fatal messages of TensorFlow's libraries are logged.",
    "KERAS_BACKEND": "Keras uses TensorFlow.",
    "KERAS_HOME": "The package's folder of settings; your `keras.json` does not count. Downloads stay in your folder.",
    "MATPLOTLIBRC": "Matplotlib's defaults; your `matplotlibrc` does not count.",
    "MPLBACKEND": "Figures are drawn without a display.",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "Prefect starts a temporary server where no server runs.",
    "PYTHONUTF8": "Files are read and written as UTF-8, whatever the locale.",
    "TF_ENABLE_ONEDNN_OPTS": "oneDNN is on, also on processors without AVX-512.",
}
"""Of the variables that `environment` sets."""


def _meaning(values: Mapping[str, str]) -> Variables:
    return {name: (f"`{value}`", MEANINGS[name]) for name, value in values.items()}


TELEMETRY = _meaning(environment.TELEMETRY_OFF)
FRAMEWORKS = _meaning({**environment.QUIET, **environment.SPEED})
FOLDER = environment.DEFAULTS.relative_to(environment.DEFAULTS.parents[1]).as_posix()
FIXED = {
    name: (value.replace(str(environment.DEFAULTS), f"…/mobilenet_pipeline/{FOLDER}"), meaning)
    for name, (value, meaning) in _meaning(environment.FIXED).items()
}
REMOVED = [(owner, ", ".join(f"`{name}`" for name in names)) for owner, names in environment.REMOVED.items()]
