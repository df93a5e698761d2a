#!/usr/bin/env bash
# dvc 3.67.1 with flufl.lock 9.2.0, Python 3.11: with `core.hardlink_lock` (for network file systems), DVC's lock is one
# of flufl.lock, whose claim names host and process, so that `Lock.state` can tell a lock whose process has ended: it is
# `stale`. DVC writes an MD5 of the claim instead of the claim. So after SIGTERM, which DVC does not catch, the lock
# stays, its state is `unknown`, nothing on the disk tells whose it is, and it is good for 365 days: every later command
# is refused, and one with --wait-for-lock waits. DVC's default lock ends with its process. SIGINT instead of SIGTERM
# lets DVC remove it.
#
# Output:
#   flufl.lock alone, its process ended: LockState.stale
#   default lock, DVC ended by SIGTERM: dvc status exits 0
#   hardlink_lock, DVC ended by SIGINT: lock no, dvc status exits 0
#   hardlink_lock, DVC ended by SIGTERM: lock yes, LockState.unknown, 365 days left, dvc status exits 255
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export HOME="$folder" DVC_NO_ANALYTICS=1
unset DVC_GLOBAL_CONFIG_DIR DVC_SYSTEM_CONFIG_DIR
python3 -m venv env
env/bin/python -m pip install --quiet "dvc==3.67.1" "flufl.lock==9.2.0"

env/bin/python -c 'import flufl.lock, os; flufl.lock.Lock("alone", lifetime=900).lock(); os._exit(0)'
alone=$(env/bin/python -c 'import flufl.lock; print(flufl.lock.Lock("alone").state)')

mkdir work
cd work
"$folder"/env/bin/dvc init --no-scm --quiet
truncate -s 4G large  # sparse: DVC reads it for seconds, with its lock, and it takes no room
printf 'stages:\n  count:\n    cmd: "true"\n    deps: [large]\n' > dvc.yaml

# Begin `dvc repro`, and end it with a signal while it reads the file.
end_by() {
  touch large  # else DVC knows its MD5 from before
  "$folder/env/bin/python" - "$1" "$folder/env/bin/dvc" <<'PYTHON'
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.argv[2], "repro", "--quiet"], stderr=subprocess.DEVNULL)
large, folder = os.path.realpath("large"), f"/proc/{child.pid}/fd"
def reads():
    for name in os.listdir(folder):
        try:
            if os.readlink(f"{folder}/{name}") == large:
                return True
        except FileNotFoundError:  # closed meanwhile
            pass
    return False
while not reads():
    assert child.poll() is None, "DVC has ended by itself"
    time.sleep(0.02)
child.send_signal(getattr(signal, sys.argv[1]))
child.wait()
PYTHON
}
status() {
  local code=0
  "$folder"/env/bin/dvc status > status.log 2>&1 || code=$?
  echo "dvc status exits $code"
}
lock() { [[ -e .dvc/tmp/lock ]] && echo yes || echo no; }

end_by SIGTERM
default=$(status)
"$folder"/env/bin/dvc config core.hardlink_lock true
rm .dvc/tmp/lock .dvc/tmp/rwlock.lock  # files of the default locks, which stay, are taken for locks for some seconds
end_by SIGINT
interrupted="lock $(lock), $(status)"
end_by SIGTERM
left=$("$folder"/env/bin/python -c '
import os, time, flufl.lock
lock = ".dvc/tmp/lock"
print(f"{flufl.lock.Lock(os.path.realpath(lock)).state}, {(os.stat(lock).st_mtime - time.time()) / 86400:.0f} days left")')
terminated="lock $(lock), $left, $(status)"
grep -q "Unable to acquire lock" status.log
output="flufl.lock alone, its process ended: $alone
default lock, DVC ended by SIGTERM: $default
hardlink_lock, DVC ended by SIGINT: $interrupted
hardlink_lock, DVC ended by SIGTERM: $terminated"
printf '%s\n' "$output"
expected="flufl.lock alone, its process ended: LockState.stale
default lock, DVC ended by SIGTERM: dvc status exits 0
hardlink_lock, DVC ended by SIGINT: lock no, dvc status exits 0
hardlink_lock, DVC ended by SIGTERM: lock yes, LockState.unknown, 365 days left, dvc status exits 255"
[[ $output == "$expected" ]] || { echo "the behaviour has changed"; exit 1; }
