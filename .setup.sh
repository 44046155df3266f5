# shellcheck shell=bash
# Sourced by the run_*.sh scripts: gives them $root and $venv_python, and set_up, which makes .venv and keeps it current.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv_python=$root/.venv/bin/python

# set_up [EXTRA]: the project with its exact dependencies in .venv, and with those of EXTRA from pyproject.toml.
# Costs nothing while pyproject.toml and constraints.txt are what they were at the last complete installation.
set_up() {
    local extra=${1:-} wanted log
    (
        # The folder itself is the lock: two scripts started at once install once.
        exec 9<"$root"
        ! command -v flock >/dev/null || flock 9
        wanted=$(cd -- "$root" && cat pyproject.toml constraints.txt <(printf '%s' "$root") | sha256sum)
        if [[ -x $venv_python && $(cat "$root/.venv/.installed-$extra" 2>/dev/null) == "$wanted" ]]; then
            exit 0
        fi
        # An installation that was killed half-way may look complete to pip: it starts anew.
        if [[ -e $root/.venv/.installing ]] || ! "$venv_python" -m pip --version >/dev/null 2>&1; then
            make_venv
        fi
        echo "Installing into .venv; the first time takes a few minutes ..." >&2
        touch "$root/.venv/.installing"
        log=$(mktemp)
        trap 'rm -f -- "$log"' EXIT
        if ! "$venv_python" -m pip install --quiet --disable-pip-version-check --no-input \
            --constraint "$root/constraints.txt" --editable "$root${extra:+[$extra]}" >"$log" 2>&1; then
            rm -f -- "$root/.venv/.installing"
            grep -v '^WARNING' "$log" >&2 || true
            echo "Installation failed; the next run tries again." >&2
            exit 1
        fi
        rm -f -- "$root/.venv/.installing"
        # An extra comes on top of the project itself.
        printf '%s\n' "$wanted" | tee "$root/.venv/.installed-" >"$root/.venv/.installed-$extra"
    )
}

make_venv() {
    local candidate version found=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version="no Python"
        if [[ $version == 3.11 || $version == 3.12 ]]; then
            "$candidate" -m venv --clear "$root/.venv" >&2
            return
        fi
        found+="${found:+, }$candidate is $version"
        # A Python that was asked for by name is not silently replaced by another one.
        [[ -z ${PYTHON:-} ]] || break
    done
    echo "Python 3.11 or 3.12 is needed: $found; name one with PYTHON=/path/to/python" >&2
    exit 2
}
