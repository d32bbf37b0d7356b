#!/bin/sh
# Build the kernel under a sanitizer and run tests with it in place of the ordinary build.
#   tools/sanitize.sh address     hostile pages (MDSTORE_FUZZ_ROUNDS, 20000 by default, a million takes some minutes), damage, the model
#   tools/sanitize.sh thread      every two operations beside each other, the stress of many threads; reports are counted, and any is a failure
#   tools/sanitize.sh KIND pytest ARGUMENTS...     anything else
# The extension goes to build/sanitized-KIND/; the ordinary one is left alone.
set -eu
kind=$1
shift
python=${PYTHON:-.venv/bin/python}
if [ $# -eq 0 ]; then
    case $kind in
    address) set -- pytest -q -p no:cacheprovider tests/unit/test_btree_pages.py tests/unit/test_btree_cache.py \
        tests/unit/test_btree_fuzz.py tests/unit/test_btree_forged.py tests/unit/test_btree_forged_trees.py \
        tests/unit/test_btree_references.py tests/unit/test_btree_records.py \
        tests/unit/test_btree_descriptor.py tests/unit/test_btree_ranges.py tests/unit/test_btree_golden.py tests/unit/test_btree_costs.py \
        tests/unit/test_btree_atomic.py tests/unit/test_btree_arguments.py tests/unit/test_btree_interleavings.py \
        tests/unit/test_btree_held.py tests/unit/test_btree_aside.py tests/unit/test_btree_broken_off.py tests/unit/test_btree_refusals.py \
        tests/model/test_btree_model.py ;;
    thread) set -- pytest -q -p no:cacheprovider tests/unit/test_btree_threads.py tests/unit/test_btree_stress.py \
        tests/unit/test_btree_pairs.py ;;
    esac
fi
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
    export MDSTORE_FUZZ_ROUNDS="${MDSTORE_FUZZ_ROUNDS:-20000}"
    export ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
    ;;
thread)
    runtime=libtsan.so
    export TSAN_OPTIONS="halt_on_error=0 exitcode=66 report_signal_unsafe=0"
    ;;
esac
export PYTHONMALLOC=malloc
# pytest would swallow what a sanitizer prints while a test runs
set -- "$@" --capture=no
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
