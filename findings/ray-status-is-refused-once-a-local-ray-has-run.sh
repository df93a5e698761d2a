#!/usr/bin/env bash
# ray 2.60.0, Python 3.11: the first Ray of its own that a user starts with `ray.init()` leaves a token in
# ~/.ray/auth_token. From then on, `ray start --head` of this user asks every client for the token, without a setting or
# an option. `ray.init("auto")` sends it. Clients that name an address do not, on the same machine as the same user:
# `ray status --address` is refused, and `ray.init(address)` says that it failed to connect. So a script that waits for
# its cluster with `ray status` works until a notebook or a test has started a local Ray once. RAY_AUTH_MODE=token helps.
#
# Output:
#   before any local Ray: token no, ray status exits 0, an address connects, auto connects
#   after one local ray.init(): token yes, ray status exits 1 (AuthenticationError), an address is refused, auto connects
#   with RAY_AUTH_MODE=token: ray status exits 0
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR="$folder/r"
unset RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
head=
stop() { if [[ $head ]]; then kill -- "-$head" 2> /dev/null || true; wait "$head" 2> /dev/null || true; head=; fi; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "ray[default]==2.60.0"
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

connects() {
  env/bin/python -c "import ray; ray.init('$1', log_to_driver=False)" > driver.log 2>&1 && echo connects || echo "is refused"
}
look() {
  setsid env/bin/ray start --head --block --port="$port" --num-cpus=1 --include-dashboard=false > start.log 2>&1 &
  head=$!
  for _ in $(seq 60); do grep -q "will now block" start.log && break; sleep 1; done
  drivers="an address $(connects "127.0.0.1:$port"), auto $(connects auto)"
  code=0
  for _ in $(seq 30); do  # its figures come some seconds after the start
    env/bin/ray status --address "127.0.0.1:$port" > status.log 2>&1 && { code=0; break; } || code=$?
    grep -q AuthenticationError status.log && break
    sleep 1
  done
  why=""
  if grep -q AuthenticationError status.log; then why=" (AuthenticationError)"; fi
}
token() { [[ -e .ray/auth_token ]] && echo yes || echo no; }

look
first="before any local Ray: token $(token), ray status exits $code$why, $drivers"
stop
env/bin/python -c "import ray; ray.init('local', num_cpus=1, include_dashboard=False)" > local.log 2>&1
look
second="after one local ray.init(): token $(token), ray status exits $code$why, $drivers"
code=0
RAY_AUTH_MODE=token env/bin/ray status --address "127.0.0.1:$port" > status.log 2>&1 || code=$?
third="with RAY_AUTH_MODE=token: ray status exits $code"
output="$first
$second
$third"
printf '%s\n' "$output"
expected="before any local Ray: token no, ray status exits 0, an address connects, auto connects
after one local ray.init(): token yes, ray status exits 1 (AuthenticationError), an address is refused, auto connects
with RAY_AUTH_MODE=token: ray status exits 0"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
