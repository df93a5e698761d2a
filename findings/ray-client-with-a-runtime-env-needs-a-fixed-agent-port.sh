#!/usr/bin/env bash
# ray 2.60.0, Python 3.11: `ray start --head` chooses the port of its runtime_env agent by itself, and tells the server of
# Ray's client port 0 for it. So `ray.init("ray://…", runtime_env=…)` fails on every cluster that was started with the
# defaults: the server asks port 0 five times and gives up after half a minute. A driver on the head, with the same
# runtime_env, works, and so does a client without one. `--runtime-env-agent-port` gives the port a number and helps.
#
# Output:
#   a client, Ray chooses the agent's port: works
#   a client with a runtime_env, Ray chooses the agent's port: ConnectionAbortedError, Connection refused
#   a client with a runtime_env, the agent's port is given: works
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
export HOME="$folder" RAY_TMPDIR="$folder/r" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
unset RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
head=
stop() { if [[ $head ]]; then kill -- "-$head" 2> /dev/null || true; wait "$head" 2> /dev/null || true; head=; fi; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "ray[default,client]==2.60.0"
free() { env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cat > connect.py <<'PY'
import sys

import ray

options = {"runtime_env": {"env_vars": {"A": "1"}}} if sys.argv[2] == "env" else {}
try:
    ray.init(sys.argv[1], log_to_driver=False, **options)
    print("works")
except Exception as error:
    print(f"{type(error).__name__}, {'Connection refused' if 'Connection refused' in str(error) else error}")
PY
start() {
  client=$(free)
  setsid env/bin/ray start --head --block --num-cpus=1 --include-dashboard=false --port="$(free)" \
    --ray-client-server-port="$client" --min-worker-port=0 --max-worker-port=0 "$@" > start.log 2>&1 &
  head=$!
  for _ in $(seq 60); do grep -q "will now block" start.log && break; sleep 1; done
}
connect() { env/bin/python connect.py "ray://127.0.0.1:$client" "$1" 2> client.log | tail -1; }

start
plain=$(connect plain)
chosen=$(connect env)
stop
start --runtime-env-agent-port="$(free)"
given=$(connect env)
output="a client, Ray chooses the agent's port: $plain
a client with a runtime_env, Ray chooses the agent's port: $chosen
a client with a runtime_env, the agent's port is given: $given"
printf '%s\n' "$output"
expected="a client, Ray chooses the agent's port: works
a client with a runtime_env, Ray chooses the agent's port: ConnectionAbortedError, Connection refused
a client with a runtime_env, the agent's port is given: works"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
