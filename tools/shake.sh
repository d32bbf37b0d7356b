#!/usr/bin/env bash
# Run tests where things happen in another order than on a quiet machine, to find those that depend on it (docs/testing.md).
#   tools/shake.sh                   the tests with threads, processes, kills and servers
#   tools/shake.sh PYTEST ARGUMENTS...   these instead
# SHAKES picks the conditions ("one busy memory shuffled"), ROUNDS goes through them so often (1), LIMIT bounds each run in seconds
# (900). Each run has a hash seed of its own; the logs are kept in build/shake. Exit code 1 when anything failed even once.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ $# -gt 0 ] || set -- tests/posix tests/crash/test_*kill*.py tests/crash/test_crash_recorded.py tests/crash/test_journal_*.py \
	tests/conformance/test_tasks.py tests/conformance/test_floors.py tests/conformance/test_transactions.py \
	tests/unit/test_btree_threads.py tests/unit/test_journal_append.py tests/unit/test_journal_waiting.py tests/unit/test_journal_turns.py \
	tests/unit/test_fuse_session.py tests/unit/test_mds_driver.py tests/unit/test_mds_reading.py tests/unit/test_mds_full.py \
	tests/unit/test_store_mapview.py tests/unit/test_store_mapview_apart.py tests/unit/test_store_resize.py \
	tests/unit/test_store_clones.py tests/unit/test_store_scrub.py

logs=build/shake
mkdir -p "$logs"
loops=()
places=()
finish() {
	[ ${#loops[@]} -eq 0 ] || kill "${loops[@]}" 2>/dev/null || true
	[ ${#places[@]} -eq 0 ] || rm -rf "${places[@]}"
	loops=() places=()
}
trap finish EXIT

shake() { # shake CONDITION ROUND PYTEST-ARGUMENTS...
	local condition=$1 round=$2 hash=$RANDOM log code=0 before=() more=() place=${TMPDIR:-/tmp}
	shift 2
	case $condition in
	one) before=(taskset -c "$("$python" -c 'import os; print(min(os.sched_getaffinity(0)))')") ;;
	busy)
		for _ in $(seq $((2 * $(nproc)))); do
			"$python" -c 'import signal, sys; signal.alarm(int(sys.argv[1]))
while True: pass' "${LIMIT:-900}" &
			loops+=($!)
		done
		;;
	memory) place=/dev/shm ;;
	shuffled) more=(--shuffle "$RANDOM" -n 2) ;;
	*) echo "no condition '$condition': one, busy, memory, shuffled" >&2 && return 2 ;;
	esac
	place=$(mktemp -d "$place/shake-XXXXXX") || { finish; echo "$condition, round $round: not run, no directory can be made there" >&2; return 1; }
	places+=("$place")
	log=$logs/$condition-$round.log
	TMPDIR=$place PYTHONHASHSEED=$hash timeout -k 10 "${LIMIT:-900}" "${before[@]}" \
		"$python" -m pytest -q -p no:cacheprovider --durations=10 "${more[@]}" "$@" >"$log" 2>&1 || code=$?
	finish
	echo "$condition, round $round: $(tail -n 1 "$log") [PYTHONHASHSEED=$hash ${more[*]}]"
	[ $code -eq 0 ] || { grep -E '^(FAILED|ERROR)' "$log" || echo "ended with code $code, see $log"; return 1; }
}

failed=0
for round in $(seq "${ROUNDS:-1}"); do
	for condition in ${SHAKES:-one busy memory shuffled}; do
		shake "$condition" "$round" "$@" || failed=1
	done
done
exit $failed
