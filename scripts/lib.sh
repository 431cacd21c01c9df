# Shared by the scripts beside it: find Python, make .venv, install what is pinned.
# To be sourced by bash, with `set -euo pipefail`; leaves us in the project's root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# The comment block at the head of a script is its help.
show_help() {
  sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$1"
}

say() {
  printf '%s\n' "$*" >&2
}

die() {
  say "$(basename "$0"): $*"
  exit 1
}

# Prints how to become root here, and fails where we cannot or may not.
_as_root() {
  [[ -z ${TXCOORD_NO_APT:-} ]] && command -v apt-get >/dev/null || return 1
  if [[ $(id -u) == 0 ]]; then
    echo env
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    echo "sudo -n env"
  else
    return 1
  fi
}

# apt_install PACKAGE...: install, or say what to install by hand.
apt_install() {
  local as_root log
  as_root=$(_as_root) || die "please install $* (Debian, Ubuntu: apt-get install $*) and start again"
  say "installing $* ..."
  log=$(mktemp)
  # Word splitting wanted: "sudo -n env".
  # shellcheck disable=SC2086
  if ! { $as_root DEBIAN_FRONTEND=noninteractive apt-get update &&
    $as_root DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"; } \
    >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "could not install $*"
  fi
  rm -f "$log"
}

_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${TXCOORD_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if command -v "$candidate" >/dev/null && _is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

_make_venv() {
  local python version
  python=$(find_python) ||
    die "needs Python 3.11 or newer: install one, or name it in TXCOORD_PYTHON"
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian's Python comes without it; the package bears the version for one that is not the default.
    if [[ $python == /usr/bin/* ]]; then apt_install "python$version-venv"; else die "$python has no module venv"; fi
  fi
  say "making .venv with Python $version ..."
  "$python" -m venv --clear .venv || die "could not make .venv"
}

_pip() {
  local log
  log=$(mktemp)
  # PIP_CONSTRAINT binds the build's own requirements too, which `-c` does not.
  if ! PIP_CONSTRAINT=$root/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    .venv/bin/python -m pip install --quiet "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "pip could not install what is needed (output above); the first run needs a package index"
  fi
  rm -f "$log"
}

# hash_of FILE...: one hash of all of them.
hash_of() {
  cat "$@" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1
}

# ensure_venv [dev]: .venv with txcoord and txcoord-sdk, editable, and with `dev` the tools of
# scripts/requirements-dev.txt. At once and offline when nothing has changed since the last time.
ensure_venv() {
  local wanted
  mkdir -p .cache
  exec 9>.cache/venv.lock
  if command -v flock >/dev/null; then flock 9; fi
  # Moved or half-removed environments do not run; an old one may be of an older Python.
  _is_new_enough .venv/bin/python || _make_venv
  wanted=$(hash_of pyproject.toml sdk/pyproject.toml constraints.txt)
  if [[ $(cat .venv/installed.stamp 2>/dev/null) != "$wanted" ]]; then
    say "installing txcoord and txcoord-sdk into .venv ..."
    _pip -e '.[all]' -e './sdk[all]'
    echo "$wanted" >.venv/installed.stamp
    rm -f .venv/dev.stamp
  fi
  if [[ ${1:-} == dev ]]; then
    wanted=$(hash_of scripts/requirements-dev.txt constraints.txt)
    if [[ $(cat .venv/dev.stamp 2>/dev/null) != "$wanted" ]]; then
      say "installing the development tools into .venv ..."
      _pip -r scripts/requirements-dev.txt
      echo "$wanted" >.venv/dev.stamp
    fi
  fi
  exec 9>&-
}
