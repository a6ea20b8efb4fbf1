#!/bin/sh
# Make the virtual environment: sh scripts/setup.sh VENV TORCH_INDEX (called by the Makefile).
#
# torch comes first and alone, because its build (CPU, or a CUDA version) is chosen by the index it comes from. Everything
# else is installed from requirements.lock with --no-deps, so no resolver ever replaces torch or pulls GPU packages.
set -eu

venv=$1
index=$2
torch=$(grep '^torch==' requirements.lock)
stamp="$venv/.ready-$(basename "$index")"

# The first of these that is Python 3.11 to 3.13; PYTHON=/path/to/python overrides.
find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python py}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: expected Python 3.11, 3.12 or 3.13; found none as ${PYTHON:-python3}; install one, or set PYTHON=/path/to/python" >&2
    exit 2
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "set-up: virtual environment in $venv, made with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        echo "error: expected a Python that can make virtual environments; found that its venv module fails;" \
            "install it (Debian and Ubuntu: apt install python3-venv)" >&2
        exit 2
    fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# Another index than last time means another build of the same version, which pip would take for installed.
if [ -f "$venv/.torch-index" ] && [ "$(cat "$venv/.torch-index")" != "$index" ]; then
    pip uninstall --quiet --yes torch
fi
rm -f "$venv"/.ready-*

echo "set-up: $torch from $index"
case "$index" in
    # The CPU build needs nothing that is not in the lock; a CUDA build needs its own runtime libraries.
    */cpu) set -- --no-deps ;;
    *) set -- --constraint requirements.lock --extra-index-url https://pypi.org/simple ;;
esac
if ! pip install --quiet --retries 1 --timeout 20 --index-url "$index" "$@" "$torch"; then
    echo "set-up: $index does not offer $torch; taking it from the default package index instead"
    pip install --quiet --constraint requirements.lock "$torch"
fi

echo "set-up: the packages of requirements.lock"
pip install --quiet --no-deps -r requirements.lock
pip install --quiet --no-deps --no-build-isolation -e .
echo "$index" > "$venv/.torch-index"
touch "$stamp"
echo "set-up: done"
