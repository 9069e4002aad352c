#!/bin/sh
# All checks and tests, from a fresh clone or not, and a summary that hides nothing: `make test` runs this.
#
# A test that cannot run here (no GPU, no model, no real Kafka) passes, and appends a line `SKIPPED: name: why` to the
# file $SPEECHVERSE_SKIPS (speechverse::testing::skip does that); the summary lists those lines. The last line of the
# output is `N passed, N failed, N skipped`; a skipped test is not counted as passed. Exit 0 only if nothing failed.
set -u

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root" || exit 1
cache=${SPEECHVERSE_CACHE:-.cache}
mkdir -p "$cache" || exit 1
cache=$(CDPATH='' cd -- "$cache" && pwd)   # absolute: tests start in the folders of their packages
SPEECHVERSE_CACHE=$cache
export SPEECHVERSE_CACHE
cargo=${CARGO:-cargo}
out=$cache/test
mkdir -p "$out" || exit 1
log=$out/log.txt
: >"$log"
SPEECHVERSE_SKIPS=$out/skips.txt
: >"$SPEECHVERSE_SKIPS"
# Tests run side by side, one per core: each may use one thread for tensors.
: "${OMP_NUM_THREADS:=1}" "${OMP_WAIT_POLICY:=PASSIVE}" "${GOMP_SPINCOUNT:=0}"
: "${SPEECHVERSE_HISTORIES:=100000}"              # simulated histories of group and transactions: two minutes
export SPEECHVERSE_HISTORIES SPEECHVERSE_SKIPS OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT
# What makes the next build quicker makes the first one slower, and takes 4 GB: only for who has it already.
[ -d "${CARGO_TARGET_DIR:-target}/debug/incremental" ] || export CARGO_INCREMENTAL=0
checks=
failed_checks=0

say() { echo "== $*"; }

step() {                               # step NAME COMMAND...: runs it, keeps its output and its verdict
    name=$1
    shift
    say "$name"
    begun=$(date +%s)
    { "$@" 2>&1; echo $? >"$out/status"; } | tee -a "$log"
    status=$(cat "$out/status")
    verdict=ok
    if [ "$status" != 0 ]; then
        verdict="FAILED (exit $status)"
        failed_checks=$((failed_checks + 1))
    fi
    checks="$checks$name: $verdict, $(($(date +%s) - begun)) s
"
    return "$status"
}

cannot() {                             # cannot NAME WHY: something optional is not to be had here
    echo "SKIPPED: $1: $2" | tee -a "$SPEECHVERSE_SKIPS"
}

free_port() {                          # a port that is free, with its neighbour free too
    python3 - <<'P'
import socket
while True:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        try:
            two.bind(("127.0.0.1", one.getsockname()[1] + 1))
        except (OSError, OverflowError):
            continue
        print(one.getsockname()[1])
        break
P
}

# A virtual environment without pip, made from one wheel: for tests with a Kafka client that is not ours.
python_client() {
    python=$cache/venv/bin/python
    "$python" -c 'import confluent_kafka' 2>/dev/null && return
    wheel=$(SPEECHVERSE_CACHE=$cache python3 scripts/fetch.py get test-clients) || return
    rm -rf "$cache/venv"
    python3 -m venv --without-pip "$cache/venv" || return
    "$python" - "$wheel" <<'P' || return
import sys, sysconfig, zipfile
zipfile.ZipFile(sys.argv[1]).extractall(sysconfig.get_path("platlib"))
P
    "$python" -c 'import confluent_kafka'
}

scripts/setup-libtorch.sh || exit 1
say "a Kafka client in Python"
if python_client >>"$log" 2>&1; then
    SPEECHVERSE_PYTHON=$cache/venv/bin/python
    export SPEECHVERSE_PYTHON
else
    cannot "Python Kafka client" "it could not be set up ($(tail -n 1 "$log")); tests that need it are skipped"
fi
step "format" "$cargo" fmt --all --check
step "unused dependencies" python3 scripts/check-deps.py
step "clippy" "$cargo" clippy --workspace --all-targets --locked -- -D warnings
step "features" scripts/check-features.sh
step "documentation" env RUSTDOCFLAGS="-D warnings" "$cargo" doc --workspace --no-deps --locked
if step "build" "$cargo" build --workspace --locked; then
    say "models"
    # shellcheck disable=SC2086
    "$cargo" run -q --locked -p speechverse-pipelines -- models fetch ${MODELS:-} ||
        cannot "models" "they could not all be fetched (see above); tests that need them are skipped"
fi
say "an Apache Kafka on loopback"
kafka_port=$(free_port)
if kafka=$(scripts/kafka/start.sh "$kafka_port" 2>>"$log") && kafka=$(echo "$kafka" | head -n 1) && [ -n "$kafka" ]; then
    echo "$kafka"
    SPEECHVERSE_KAFKA=$kafka
    SPEECHVERSE_FAULTS_APACHE=1                    # the fault suite starts its own, which it kills
    export SPEECHVERSE_KAFKA SPEECHVERSE_FAULTS_APACHE
    trap 'scripts/kafka/stop.sh "$kafka_port"' EXIT
    trap 'exit 130' INT TERM
else
    cannot "Apache Kafka" "it could not be started ($(tail -n 1 "$log")); the tests on it are skipped"
fi
# One line for each test executable: the arguments of cargo. Those that take longest come first.
executables() {
    "$cargo" metadata --no-deps --format-version 1 --locked | python3 -c '
import json, sys
first = ["faults", "recipe", "kafka", "seams"]
names = {t["name"] for p in json.load(sys.stdin)["packages"] for t in p["targets"] if "test" in t["kind"]}
if not names.issuperset(first):
    sys.exit(f"there are no tests {set(first) - names}: mend scripts/run-tests.sh")
for name in sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name)):
    print("--test", name)
    if name == first[-1]:
        print("--lib --bins")
print("--doc")
'
}

# Many tests wait for time-outs, of brokers and of processes that they killed, while others compute: three executables at once.
tests() {
    rm -rf "$out/tests"
    mkdir "$out/tests"
    executables >"$out/executables.txt" || return
    # shellcheck disable=SC2016
    xargs <"$out/executables.txt" -P 3 -I '{}' sh -c '
        begun=$(date +%s)
        "$0" test --workspace --locked --no-fail-fast $2 >"$1/$2.txt" 2>&1 || : >"$1/failed"
        echo "$2: $(($(date +%s) - begun)) s"
    ' "$cargo" "$out/tests" '{}' || : >"$out/tests/failed"
    cat "$out/tests/"*.txt
    [ ! -e "$out/tests/failed" ]
}

# Once more on Apache Kafka, but for what has a broker of its own and what measures memory.
tests_on_apache() {
    SPEECHVERSE_SYSTEM_KAFKA=$SPEECHVERSE_KAFKA "$cargo" test --locked --no-fail-fast -p speechverse --test system -- \
        --skip outage:: --skip soak::
}

if step "build of tests" "$cargo" test --workspace --locked --no-run; then
    step "tests" tests
    [ -z "${SPEECHVERSE_KAFKA:-}" ] || step "system tests on Apache Kafka" tests_on_apache
fi

echo
say "summary"
printf '%s' "$checks"
# `test NAME ... ignored, REASON`, of unit, integration and doc tests alike
sed -n 's/^test \(.*\) \.\.\. ignored\(, \)\{0,1\}\(.*\)$/SKIPPED: \1: ignored \3/p' "$log" >"$out/ignored.txt"
sort -u "$SPEECHVERSE_SKIPS" >"$out/skipped.txt"
cat "$out/skipped.txt" "$out/ignored.txt"
grep -E '^test .* \.\.\. FAILED$' "$log" | sed 's/^test \(.*\) \.\.\. FAILED$/FAILED: \1/'
# What failed tests said (libtest prints it between two lines `failures:`): the panic and what follows it, cut to size.
awk -v most=25 '
    $0 == "failures:" { inside = !inside }
    inside && /^---- .* stdout ----$/ { print; shown = 0; found = 0 }
    inside && /panicked at/ { found = 1 }
    inside && found && shown < most && !/^note: |^stack backtrace:/ { print "    " substr($0, 1, 400); shown++ }
' "$log"
total() { sed -n "s/^test result: .* \([0-9][0-9]*\) $1;.*/\1/p" "$log" | awk '{ n += $1 } END { print n + 0 }'; }
lines() { wc -l <"$1" | tr -d ' '; }
# What the script itself found missing is listed, but was never a test that passed.
within=$(grep -vcE '^SKIPPED: (models|Python Kafka client|Apache Kafka): ' "$out/skipped.txt")
passed=$(($(total passed) - within))
failed=$(total failed)
if [ "$failed_checks" != 0 ]; then
    echo "failed: $(printf '%s' "$checks" | grep FAILED | tr '\n' ';')"
fi
echo "$passed passed, $failed failed, $(($(lines "$out/skipped.txt") + $(lines "$out/ignored.txt"))) skipped"
[ "$failed_checks" = 0 ] && [ "$failed" = 0 ]
