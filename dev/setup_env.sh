#!/usr/bin/env bash
# Creates the virtual environment and installs everything the project needs; a second run does nothing.
#
#   VENV=.venv         folder of the environment
#   PYTHON=python3     interpreter that creates it (3.10 or newer; looked for when not given)
#   DETECTRON2=<spec>  another Detectron2: anything `pip install` accepts (a git URL, a folder, a wheel)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
DETECTRON2=${DETECTRON2:-}
# A re-upload of Detectron2; its Python sources are all that is used (see install_detectron2_wheel).
DETECTRON2_WHEEL="sal-detectron2==0.7.2"
# Its own requirements. Installed by name because its metadata asks for numpy<2, which it does not need.
DETECTRON2_NEEDS="cloudpickle hydra-core>=1.1 iopath omegaconf>=2.1 packaging tabulate termcolor tqdm yacs"
# Reference encoder of tests/checkpoint/test_torchscale_parity.py, which stands in for its requirements:
# exact old versions of fairscale and timm that do not build everywhere. Without it the test is skipped.
TORCHSCALE="torchscale==0.3.0"
# detectron2.model_zoo and older tensorboard releases import pkg_resources, which setuptools 81 dropped.
BUILD_TOOLS="setuptools>=64,<81 wheel"

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_supported() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON (found $("$PYTHON" -V 2>/dev/null || echo nothing)), needed >= 3.10." \
            "Run: make env PYTHON=<path of a newer python3>"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python (found $(python3 -V 2>/dev/null || echo nothing)), needed >= 3.10." \
        "Run: make env PYTHON=<path of a newer python3>"
}

create_venv() {
    local python
    python=$(find_python)
    echo "setup: creating $VENV with $("$python" -V 2>&1)"
    if ! "$python" -m venv "$VENV"; then
        rm -rf "$VENV"
        fail "$python cannot create environments (the venv module is missing)." \
            "Run: apt-get install python3-venv (Debian, Ubuntu), then this command again"
    fi
}

# The wheel is tagged for Python 3.10, so pip takes it only as a download for that version into a
# folder. Left out: operators compiled for one Python and one torch, without which Detectron2's Python
# code runs on any (we use none of them), and a stray top-level package "tools".
install_detectron2_wheel() {
    local site unpacked
    site=$("$py" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    unpacked=$(mktemp -d)
    "$py" -m pip install -qq --no-deps --target "$unpacked" --only-binary=:all: \
        --python-version 3.10 --implementation cp --abi none --platform any "$DETECTRON2_WHEEL"
    rm -rf "$unpacked/tools" "$unpacked"/detectron2/_C.*
    cp -R "$unpacked"/. "$site"/
    rm -rf "$unpacked"
}

install_all() {
    echo "setup: installing into $VENV (torch is large: some minutes on a first run)"
    # shellcheck disable=SC2086  # lists of requirements, to be split
    "$py" -m pip install -qq $BUILD_TOOLS
    "$py" -m pip install -qq --no-build-isolation --use-pep517 --editable ".[dev]"
    install_detectron2
    "$py" -m pip install -qq --no-deps "$TORCHSCALE" ||
        echo "setup: $TORCHSCALE is not available; the comparison with it will be skipped"
}

install_detectron2() {
    local wanted=${DETECTRON2:-$DETECTRON2_WHEEL} record="$VENV/.detectron2_source"
    if [ -f "$record" ] && [ "$(cat "$record")" = "$wanted" ]; then
        return
    fi
    # An earlier Detectron2 goes first, so that two kinds of it never mix in one folder.
    "$py" -m pip uninstall -qq --yes detectron2 sal-detectron2 2>/dev/null || true
    rm -f "$record"
    if [ -n "$DETECTRON2" ]; then
        # Detectron2's own build needs the torch installed above, hence no build isolation.
        "$py" -m pip install -qq --no-build-isolation "$DETECTRON2"
    else
        # shellcheck disable=SC2086
        "$py" -m pip install -qq $DETECTRON2_NEEDS
        install_detectron2_wheel
    fi
    echo "$wanted" >"$record"
}

py="$VENV/bin/python"
stamp="$VENV/.igvg_d2_installed"
key="$(cat setup.py igvg_d2/requirements_check.py dev/setup_env.sh | cksum) $DETECTRON2"

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && [ -x "$py" ]; then
    exit 0
fi
[ -x "$py" ] || create_venv
is_supported "$py" || fail "$py (found $("$py" -V 2>&1)), needed >= 3.10. Run: rm -r $VENV, then this command again"
install_all
"$py" igvg_d2/requirements_check.py
"$py" -c 'import detectron2, torch; print(f"setup: torch {torch.__version__}, detectron2 {detectron2.__version__}")'
echo "$key" >"$stamp"
