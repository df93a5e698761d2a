#!/usr/bin/env bash
# prefect 3.8.8, Python 3.11: a daily cron schedule whose time falls into the hour that clocks skip runs an hour before
# that time, at a local time that the expression does not name. Vixie cron runs such a job right after the jump, and the
# other common choice is to leave the day out. In Europe/Berlin, clocks go from 02:00 to 03:00 on 2027-03-28: the
# schedule `30 2 * * *` runs at 01:30, which is 23 hours after the run before. A schedule in the hour that clocks show
# twice (2027-10-31) runs once.
#
# Output:
#   2027-03-27 02:30 +0100
#   2027-03-28 01:30 +0100
#   2027-03-29 02:30 +0200
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "prefect==3.8.8" "fastapi<0.151" "sqlalchemy<2.1"
export PREFECT_HOME="$folder/home" DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
cat > dates.py <<'PY'
import asyncio
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule

zone = "Europe/Berlin"
schedule = CronSchedule(cron="30 2 * * *", timezone=zone)
for date in asyncio.run(schedule.get_dates(3, start=datetime(2027, 3, 27, 0, 0, tzinfo=UTC))):
    print(date.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M %z"))
PY
output=$(env/bin/python dates.py 2> dates.log) || { cat dates.log; exit 1; }
printf '%s\n' "$output"
expected="2027-03-27 02:30 +0100
2027-03-28 01:30 +0100
2027-03-29 02:30 +0200"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
