#!/usr/bin/env bash
# Set up the virtual environment with everything `make demo` and `make test` need. Debian packages are installed where we may
# (root); where we may not, what is missing is named. Used by the Makefile; safe to run again. `setup.sh browser`: only the browser.
set -euo pipefail
venv=${1:-.venv}
python=${PYTHON:-python3}

need() { # need COMMAND-OR-FILE PACKAGE WHAT-FOR
	{ command -v "$1" || [ -e "$1" ]; } >/dev/null 2>&1 && return 0
	missing+=("$2")
	reasons+=("$2: $3")
}
missing=() reasons=()
if [ "$venv" = browser ]; then
	need chromium chromium "draws the reports that tests look at"
else
	need cc gcc "compiles the B-tree kernel"
"$python" - <<'PY' >/dev/null 2>&1 || { missing+=(python3-dev python3-venv); reasons+=("python3-dev python3-venv: headers and venv"); }
import ensurepip, os, sysconfig
assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
PY
need fusermount3 fuse3 "mounts an image without being root"
fi
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing ${missing[*]}"
		apt-get update -q >/dev/null && apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
	else
		printf 'missing Debian packages (install them as root, then run make again):\n' >&2
		printf '  %s\n' "${reasons[@]}" >&2
		[ "$venv" = browser ] || command -v cc >/dev/null 2>&1 || exit 1 # without a compiler nothing works; without the others only some tests
	fi
fi
[ "$venv" = browser ] && exit 0
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $("$python" -V) is $python" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check 'setuptools>=77' wheel 'Cython>=3.1'
"$venv/bin/pip" install -q --disable-pip-version-check --no-build-isolation -e '.[test]'
