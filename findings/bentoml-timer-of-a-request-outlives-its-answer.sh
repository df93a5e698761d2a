#!/usr/bin/env bash
# bentoml 1.4.39, httpx 0.28.1, Python 3.11: with `traffic.timeout`, which is 60 s by default, BentoML starts a timer for
# every HTTP request and never cancels it. Answered requests keep their timer, and the future that it would fail, until
# the timeout. So the memory of a service grows with requests per second times the timeout: 1,000 requests/s hold 60,000
# timers, and a longer timeout for a slow endpoint holds more. Health checks get one, too.
#
# Output, after five health checks that were answered at once:
#   answers: 200 200 200 200 200
#   timers that still wait: 5, of finished requests: 5
#   the first of them ends in 50 to 60 s
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "bentoml==1.4.39" "httpx==0.28.1"
export BENTOML_HOME="$folder/home" BENTOML_DO_NOT_TRACK=True
cat > timers.py <<'PY'
import asyncio

import bentoml
import httpx


@bentoml.service
class Echo:
    @bentoml.api
    def echo(self, text: str) -> str:
        return text


async def main() -> None:
    transport = httpx.ASGITransport(Echo.to_asgi(is_main=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        print("answers:", *[(await client.get("/livez")).status_code for _ in range(5)])
    loop = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    finished = [timer for timer in timers if timer._args and timer._args[0].done()]
    print(f"timers that still wait: {len(timers)}, of finished requests: {len(finished)}")
    if timers:
        ends = min(timer.when() for timer in timers) - loop.time()
    print("the first of them ends in 50 to 60 s" if 50 < ends <= 60 else f"the first of them ends in {ends} s")


asyncio.run(main())
PY
output=$(env/bin/python timers.py 2> log) || { cat log; exit 1; }
printf '%s\n' "$output"
expected="answers: 200 200 200 200 200
timers that still wait: 5, of finished requests: 5
the first of them ends in 50 to 60 s"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
