#!/bin/sh
# Build the kernel under a sanitizer and run a Python module or script with it in place of the ordinary build.
#   tools/build_sanitized.sh address pytest -q tests/unit/test_btree_pages.py
#   tools/build_sanitized.sh thread  pytest -q tests/unit/test_btree_threads.py
# The extension goes to build/sanitized-<kind>/; the ordinary one is left alone.
set -eu
kind=$1
shift
python=${PYTHON:-python3}
out=build/sanitized-$kind
mkdir -p "$out"
"$python" -m cython -3 mdstore/btree/_kernel.pyx -o "$out/_kernel.c"
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
"${CC:-gcc}" -shared -fPIC -g -O1 -w -fno-omit-frame-pointer -fno-strict-aliasing $([ "$kind" = thread ] && echo -DMDSTORE_RACES_ANNOTATED) \
    -fsanitize="$kind" -I"$include" -Imdstore/btree "$out/_kernel.c" -o "$out/_kernel$suffix"
case $kind in
address)
    runtime=libasan.so
    export ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
    ;;
thread)
    runtime=libtsan.so
    export TSAN_OPTIONS="halt_on_error=0 exitcode=66 report_signal_unsafe=0 log_path=$out/report"
    ;;
esac
export PYTHONMALLOC=malloc
LD_PRELOAD=$("${CC:-gcc}" -print-file-name=$runtime) exec "$python" -c '
import importlib.util, runpy, sys
spec = importlib.util.spec_from_file_location("mdstore.btree._kernel", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.path.insert(0, "")
import mdstore
sys.modules["mdstore.btree._kernel"] = module
spec.loader.exec_module(module)
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
' "$out/_kernel$suffix" "$@"
