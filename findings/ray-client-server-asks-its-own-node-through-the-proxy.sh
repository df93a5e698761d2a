#!/usr/bin/env bash
# ray 2.60.0, Python 3.11: a head that is started where HTTP_PROXY is set runs, and drivers of its own machine connect with
# `auto`. Ray's clients (`ray://HOST:PORT`) do so only without a runtime environment. With one, such as a variable for
# the workers, the client server on the head asks the agent of its own node by HTTP through urllib, which sends the
# request to the proxy. A proxy knows
# no such address, so after half a minute of retries the client gets a ConnectionError that names neither the proxy nor
# the address that was asked for. Ray's own gRPC connections do not follow HTTP_PROXY. NO_PROXY with the node's address
# helps, when it is set before `ray start`.
#
# Output:
#   HTTP_PROXY is set: auto connects, ray:// connects, with a runtime environment: auto connects, ray:// fails (GetOrCreateRuntimeEnv request failed)
#   NO_PROXY has the node's address: auto connects, ray:// connects, with a runtime environment: auto connects, ray:// connects
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR="$folder/r" RAY_AUTH_MODE=disabled
unset RAY_ADDRESS HTTP_PROXY http_proxy HTTPS_PROXY https_proxy ALL_PROXY all_proxy NO_PROXY no_proxy
head=
stop() { if [[ $head ]]; then kill -- "-$head" 2> /dev/null || true; wait "$head" 2> /dev/null || true; head=; fi; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "ray[client,default]==2.60.0"
some='{"env_vars": {"EXAMPLE": "1"}}'
free_port() { env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

connects() {
  if env/bin/python -c "import ray; ray.init('$1', log_to_driver=False, runtime_env=$2)" > driver.log 2>&1; then
    echo connects
  else
    echo "fails ($(grep -o 'GetOrCreateRuntimeEnv request failed' driver.log | head -n 1))"
  fi
}
# Start a head with variables, and say who connects; nothing listens at the proxy's port.
look() {
  local port client
  port=$(free_port) client=$(free_port)
  env "$@" HTTP_PROXY="http://127.0.0.1:9" setsid env/bin/ray start --head --block --port="$port" \
    --ray-client-server-port="$client" --num-cpus=1 --include-dashboard=false > start.log 2>&1 &
  head=$!
  for _ in $(seq 60); do grep -q "will now block" start.log && break; sleep 1; done
  node=$(grep -o 'Local node IP.*' start.log | grep -oE '[0-9]+(\.[0-9]+){3}' | head -n 1)
  drivers="auto $(connects auto None), ray:// $(connects "ray://$node:$client" None)"
  drivers+=", with a runtime environment: auto $(connects auto "$some"), ray:// $(connects "ray://$node:$client" "$some")"
  stop
}

look
first="HTTP_PROXY is set: $drivers"
look NO_PROXY="$node"
second="NO_PROXY has the node's address: $drivers"
output="$first
$second"
printf '%s\n' "$output"
expected="HTTP_PROXY is set: auto connects, ray:// connects, with a runtime environment: auto connects, ray:// fails (GetOrCreateRuntimeEnv request failed)
NO_PROXY has the node's address: auto connects, ray:// connects, with a runtime environment: auto connects, ray:// connects"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
