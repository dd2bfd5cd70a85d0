# Sourced by the other scripts: enters the repository's root and makes .venv hold sepnet and its development tools.
#
# .venv/setup-stamp     what was installed: the repository's place and a hash of the files that name the versions
# .venv/setup-running   there while an installation runs; found at the start, it tells of an interrupted one, and .venv is made anew
#
# PYTHON names the interpreter to build .venv with (default: python3). pip's own settings (PIP_INDEX_URL, ...) are respected.
# shellcheck shell=bash

root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
unset PYTHONHOME PYTHONPATH # only what .venv holds is to be found
venv_python=$root/.venv/bin/python

_die() {
    echo "setup: $*" >&2
    exit 1
}

_wanted_stamp() {
    echo "$root"
    cat pyproject.toml constraints.txt setup.py src/sepnet/_version.py src/sepnet/kernels/csrc/* | cksum
}

_recent_enough() { # INTERPRETER: runs, and is Python 3.11 or later
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

_make_venv() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || _die "no '$python' on the PATH; install Python 3.11 or later, or name one: PYTHON=/path/to/python3 $0"
    _recent_enough "$python" \
        || _die "'$python' is $("$python" --version 2>&1 | head -n 1), sepnet needs 3.11 or later; name one: PYTHON=/path/to/python3 $0"
    rm -rf .venv
    mkdir .venv
    touch .venv/setup-running
    local output
    output=$("$python" -m venv .venv 2>&1) \
        || _die "cannot create .venv (on Debian and Ubuntu: apt install python3-venv): $(tail -n 1 <<<"$output")"
}

_install() {
    echo "setup: installing sepnet and its development tools into .venv (minutes, the first time)" >&2
    # Nothing half-installed is trusted: what an interrupted run left is thrown away, what merely is of older versions is updated.
    if [[ -e .venv/setup-running ]] || ! "$venv_python" -m pip --version >/dev/null 2>&1 || ! _recent_enough "$venv_python"; then
        _make_venv
    fi
    touch .venv/setup-running
    rm -f .venv/setup-stamp
    trap 'exit 130' INT TERM # else the interrupted pip looks like one that failed, and cleaned up behind itself
    if ! "$venv_python" -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; then
        rm .venv/setup-running
        _die "pip could not install the packages (its message is above); run $0 again when the cause is gone"
    fi
    trap - INT TERM
    _wanted_stamp >.venv/setup-stamp
    rm .venv/setup-running
}

if [[ -e .venv/setup-running ]] || ! _wanted_stamp | cmp -s - .venv/setup-stamp; then
    _install
fi
