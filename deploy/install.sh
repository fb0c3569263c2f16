#!/usr/bin/env bash
# Installs, upgrades or removes peerd on Raspberry Pi OS 64-bit, Debian, Ubuntu and JetPack; docs/install.md says more.
#
# Each run makes a virtual environment of its own in PREFIX/releases and tries it. Only then does PREFIX/venv, a
# symbolic link, point to it, so a run that fails leaves what was there running. An upgrade takes over the packages
# of the release before as hard links: torch is neither loaded again nor on the disk twice.
set -euo pipefail
umask 022 # what root installs here is read by user peerd
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

usage() {
  cat <<'END'
usage: install.sh [--wheel FILE] [--torch WHAT] [OPTION]...     install or upgrade
       install.sh --uninstall [--purge] [OPTION]...

  --wheel FILE        peerd's wheel (default: one beside this script, else the source tree it lies in)
  --torch WHAT        a requirement ('torch==2.9.1'), a wheel, or a folder that holds a torch already: the
                      site-packages of another environment (default: the torch of the installation that is
                      upgraded, else the Python's own, as on a Jetson, else one from PyTorch's CPU index)
  --torch-index URL   where that last one comes from (https://download.pytorch.org/whl/cpu)
  --extras LIST       optional parts of peerd, separated by commas
  --find-links DIR, --no-index
                      handed to pip: wheels that lie in DIR, and nothing from the network
  --python PATH       the Python to use, 3.11 or newer (default: the first python3 that is)
  --prefix DIR        where it goes (/opt/peerd)
  --bin-dir DIR       where the command 'peerd' is linked (/usr/local/bin); 'none' for nowhere
  --no-service        leave systemd alone
  --uninstall         remove all but the state folder
  --purge             with --uninstall: the state folder too, keys and checkpoints with it
  --state DIR         the state folder (/var/lib/peerd)
END
}

say() { printf 'peerd: %s\n' "$*"; }
die() {
  printf 'peerd: %s\n' "$*" >&2
  exit 1
}
misused() {
  printf "peerd: %s; see 'install.sh --help'\n" "$*" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
wheel='' torch='' extras='' python='' uninstall='' purge='' service=yes
torch_index=https://download.pytorch.org/whl/cpu
prefix=/opt/peerd bin_dir=/usr/local/bin state=/var/lib/peerd
requirement='torch>=2.5,!=2.10.0' # as pyproject.toml has it
room_mb=2500 room_again_mb=400     # guess: torch's CPU wheel and what it unpacks to; all the rest
pip_options=()

while [ $# -gt 0 ]; do
  case $1 in
    --wheel | --torch | --torch-index | --extras | --find-links | --python | --prefix | --bin-dir | --state)
      [ $# -ge 2 ] && [ -n "$2" ] || misused "$1 needs a value"
      case $1 in
        --wheel) wheel=$2 ;;
        --torch) torch=$2 ;;
        --torch-index) torch_index=$2 ;;
        --extras) extras=$2 ;;
        --find-links) pip_options+=(--find-links "$2") ;;
        --python) python=$2 ;;
        --prefix) prefix=$2 ;;
        --bin-dir) bin_dir=$2 ;;
        --state) state=$2 ;;
      esac
      shift 2
      ;;
    --no-index)
      pip_options+=(--no-index)
      torch_index=''
      shift
      ;;
    --no-service) service='' && shift ;;
    --uninstall) uninstall=yes && shift ;;
    --purge) purge=yes && shift ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) misused "unknown argument '$1'" ;;
  esac
done
[ -z "$purge" ] || [ -n "$uninstall" ] || misused "--purge goes with --uninstall"
for path in "$prefix" "$state"; do
  case $path in
    / | /usr | /opt | /var | /home | /root | /etc | /var/lib) misused "$path is no folder for peerd alone" ;;
    /*) ;;
    *) misused "$path is not an absolute path" ;;
  esac
done
case $bin_dir in none | /*) ;; *) misused "$bin_dir is not an absolute path" ;; esac

# --- what is there ------------------------------------------------------------------------------------------

mark=$prefix/.made-by-install.sh
link=$bin_dir/peerd

# The folder, or the nearest above it that exists.
standing() {
  local folder=$1
  while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
  printf '%s\n' "$folder"
}

may_write() {
  local path
  for path in "$@"; do
    [ -w "$(standing "$path")" ] || return 1
  done
}

ask_for_root() {
  local places=("$prefix")
  [ "$bin_dir" = none ] || places+=("$bin_dir")
  [ -z "$purge" ] || places+=("$(dirname "$state")")
  [ "$(id -u)" = 0 ] || [ -z "$service" ] || [ ! -d /run/systemd/system ] ||
    die "the service takes root: run it with sudo, or add --no-service, and --prefix and --bin-dir in your home"
  may_write "${places[@]}" ||
    die "${places[*]} cannot be written: run it with sudo, or name other places with --prefix and --bin-dir"
}

# The command, by an interpreter whose path outlives upgrades: 'service install' writes that path into the unit.
peerd() { "$prefix/venv/bin/python" -P -m cli.main "$@"; }

with_service() { [ -n "$service" ] && [ -d /run/systemd/system ]; }

# --- removing -----------------------------------------------------------------------------------------------

remove() {
  if [ ! -e "$mark" ]; then
    [ ! -e "$prefix" ] || die "$prefix was not made by this script; nothing is removed"
    say "nothing is installed in $prefix"
  else
    if with_service; then
      peerd service uninstall ||
        die "the service could not be removed, so nothing was; mend peerd by installing it again, or add --no-service"
    fi
    if [ "$bin_dir" != none ] && [ -L "$link" ] && [ "$(readlink "$link")" = "$prefix/venv/bin/peerd" ]; then
      rm "$link"
    fi
    rm -rf "$prefix"
    say "removed $prefix"
  fi
  if [ -n "$purge" ]; then
    rm -rf "$state"
    say "removed $state: keys, checkpoints and this device's identity"
  elif [ -e "$state" ]; then
    say "left $state: keys, checkpoints and this device's identity ('--uninstall --purge' deletes them)"
  fi
}

# --- Python -------------------------------------------------------------------------------------------------

# ok, 32 (bits), or old; nothing where it does not run.
judge() {
  "$1" -I -c 'import sys
print("32" if sys.maxsize < 2**32 else "old" if sys.version_info < (3, 11) else "ok")' 2>/dev/null || true
}

no_32_bit() {
  die "this system's programs are 32-bit ($(uname -m) kernel), and there is no torch for those; install a 64-bit" \
    "system, such as Raspberry Pi OS (64-bit)"
}

no_python() {
  local remedy="install Python 3.11 or newer and name it with --python" name=''
  # shellcheck disable=SC1091
  [ ! -r /etc/os-release ] || name=$(. /etc/os-release && printf '%s %s' "${NAME:-}" "${VERSION_ID:-}")
  [ ! -e /etc/nv_tegra_release ] || name="JetPack on $name"
  case $name in
    *'Ubuntu 22.04') remedy="it comes with 3.10. Either 'sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt install
       python3.12-venv' and --python /usr/bin/python3.12, or 'sudo env UV_PYTHON_INSTALL_DIR=/opt/python uv python
       install 3.12' and --python with the path that 'uv python find 3.12' prints then" ;;
    Raspbian* | Debian*) remedy="Raspberry Pi OS and Debian have it from bookworm (12) on" ;;
  esac
  die "no Python 3.11 or newer found${name:+ on $name}: $remedy"
}

choose_python() {
  local candidate verdict
  if [ -n "$python" ]; then
    candidate=$(command -v "$python") || die "no such Python: $python"
    verdict=$(judge "$candidate")
    case $verdict in
      ok) python=$candidate ;;
      32) no_32_bit ;;
      old) die "$python is older than 3.11; name a newer one with --python" ;;
      *) die "$python does not run as a Python" ;;
    esac
    return
  fi
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11) too_narrow=''
  if [ -x "$prefix/venv/bin/python" ]; then # an upgrade keeps to what its packages were made for
    candidate=$("$prefix/venv/bin/python" -I -c 'import sys; print(sys._base_executable)' 2>/dev/null) &&
      candidates=("$candidate" "${candidates[@]}")
  fi
  for candidate in "${candidates[@]}"; do
    candidate=$(command -v "$candidate") || continue
    case $(judge "$candidate") in
      ok)
        python=$candidate
        return
        ;;
      32) too_narrow=yes ;;
    esac
  done
  [ -z "$too_narrow" ] || no_32_bit
  no_python
}

# The version of the torch that a Python can import, by its own means alone.
torch_of() { "$1" -I -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null; }

# Where pure packages of the virtual environment $1 lie.
site_of() { "$1/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# --- installing ---------------------------------------------------------------------------------------------

new='' before='' taken='' made=''

clean_up() {
  local code=$?
  [ -z "$new" ] || rm -rf "$new"
  rm -rf "$prefix/tmp"
  if [ $code != 0 ] && [ -n "$new" ]; then
    if [ -n "$before" ]; then
      say "nothing was changed: the peerd that was there is as it was" >&2
    else
      rmdir "$prefix/releases" 2>/dev/null && rm -f "$mark" "$prefix/.lock" && rmdir "$prefix"
    fi
  fi
  exit $code
}

no_network='name resolution|NameResolutionError|Network is unreachable|NewConnectionError|Connection (refused|timed out)'

explain() {
  local log=$prefix/tmp/pip.log
  if grep -q 'No space left on device' "$log"; then
    die "the disk of $prefix is full"
  elif grep -qE "$no_network" "$log"; then
    die "no network, or not to where pip looks (above). Without one: fetch the wheels on another machine with" \
      "'pip download' (docs/install.md) and name their folder with --no-index --find-links DIR"
  elif grep -q 'constraint) torch' "$log"; then
    die "the torch that is there ($(torch_of "$new/bin/python")) will not do, peerd wants $requirement;" \
      "raise it, or name another one with --torch"
  elif grep -q 'No matching distribution found for torch' "$log"; then
    die "there is no torch for $("$new/bin/python" -V) on $(uname -m) where pip looks; name another Python with" \
      "--python, or a torch with --torch"
  fi
  die "pip could not install $1; what it says is above"
}

pip() { # what it is for, then pip's arguments
  local what=$1
  shift
  TMPDIR=$prefix/tmp "$new/bin/python" -I -m pip install --no-cache-dir --disable-pip-version-check --no-input \
    --prefer-binary "$@" 2>&1 | tee "$prefix/tmp/pip.log" || explain "$what"
}

choose_wheel() {
  local found=()
  if [ -n "$wheel" ]; then
    [ -f "$wheel" ] || die "no such wheel: $wheel"
    wheel=$(realpath "$wheel")
  else
    shopt -s nullglob
    found=("$here"/peerd-*.whl)
    shopt -u nullglob
    case ${#found[@]} in
      0)
        wheel=$(dirname "$here")
        grep -qs '^name = "peerd"' "$wheel/pyproject.toml" ||
          die "there is neither a wheel beside $here/install.sh nor peerd's source around it; name one with --wheel"
        ;;
      1) wheel=${found[0]} ;;
      *) die "there is more than one wheel beside this script; name one with --wheel" ;;
    esac
  fi
}

check_room() {
  local wanted=$room_mb free
  if [ -d "$torch" ] || { [ -z "$torch" ] && { [ -n "$before" ] || torch_of "$python" >/dev/null; }; }; then
    wanted=$room_again_mb
  fi
  free=$(df -Pm "$(standing "$prefix")" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$wanted" ] || die "$prefix needs some $wanted MB of free disk, and there are $free"
}

# An environment in $new: packages taken over from the release before where they fit.
make_environment() {
  local options=() own
  if [ -n "$before" ] && [ "$(kind_of "$before/bin/python")" = "$(kind_of "$python")" ]; then
    taken=yes
    options+=(--without-pip)
    if [ -z "$torch" ] && grep -qi '^include-system-site-packages *= *true' "$before/pyvenv.cfg"; then
      options+=(--system-site-packages)
    fi
  elif [ -z "$torch" ] && torch_of "$python" >/dev/null; then
    say "taking the torch of $python ($(torch_of "$python"))"
    options+=(--system-site-packages)
  fi
  if [ -z "$taken" ] && ! "$python" -I -c 'import ensurepip, venv' 2>/dev/null; then
    die "$python cannot make virtual environments: 'sudo apt install $(basename "$(realpath "$python")")-venv'"
  fi
  "$python" -I -m venv "${options[@]}" "$new"
  if with_service && ! runuser -u nobody -- "$new/bin/python" -I -c ''; then
    die "the service's user cannot run $python, which lies in a folder closed to others; install one for all" \
      "(apt; or uv with UV_PYTHON_INSTALL_DIR=/opt/python) and name it with --python"
  fi
  if [ -n "$taken" ]; then
    own=$(site_of "$new")
    rmdir "$own"
    cp -al "$(site_of "$before")" "$own" 2>/dev/null || { # a file system without hard links
      rm -rf "$own"
      cp -a "$(site_of "$before")" "$own"
    }
    rm -r "$own"/peer "$own"/cli "$own"/peerd-*.dist-info # or pip would find nothing to do for the same version
  fi
}

# What its packages are made for, such as 'cpython-311'.
kind_of() { "$1" -I -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null || echo none; }

install_torch() {
  local found
  if [ -d "$torch" ]; then
    [ -e "$torch/torch/__init__.py" ] || die "$torch holds no torch; name the site-packages folder it lies in"
    torch=$(realpath "$torch")
    if with_service && ! runuser -u nobody -- test -r "$torch/torch/__init__.py"; then
      die "the service's user cannot read $torch; open the folders above it ('chmod o+x'), or install torch elsewhere"
    fi
    printf '%s\n' "$torch" >"$(site_of "$new")/torch-elsewhere.pth"
    # Python 3.11's environments bring an old one, in front of the one that torch was installed with
    "$new/bin/python" -I -m pip uninstall --quiet --yes setuptools
  elif [ -n "$torch" ]; then
    case $torch in *.whl) [ -f "$torch" ] || die "no such wheel: $torch" ;; esac
    pip torch "${pip_options[@]}" "$torch"
  elif ! torch_of "$new/bin/python" >/dev/null; then
    [ ! -e /etc/nv_tegra_release ] ||
      say "no torch of NVIDIA's found for $python: this one will use the CPU alone ('--torch' names another)"
    say "loading torch${torch_index:+ from $torch_index}"
    pip torch ${torch_index:+--index-url "$torch_index"} "${pip_options[@]}" "$requirement"
  fi
  found=$(torch_of "$new/bin/python") ||
    die "there is a torch that does not say its version; name another one with --torch"
  printf 'torch===%s\n' "$found" >"$prefix/tmp/constraints" # from here on, never another one
  say "torch $found"
}

try_it() {
  local code=0
  "$new/bin/peerd" --version
  "$new/bin/python" -I -c 'import torch, numpy
torch.from_numpy(numpy.zeros(1)).numpy()
import peer, peer.daemon.app, peer.learner.attach, peer.tasks.spoken_digits' || code=$?
  case $code in
    0) ;;
    132) die "this torch uses instructions that this CPU does not have; name an older one, as --torch 'torch==2.7.1'" ;;
    *) die "the new installation does not run; what it says is above" ;;
  esac
}

point_to() {
  ln -sfn "$1" "$prefix/.venv.next"
  mv -T "$prefix/.venv.next" "$prefix/venv"
}

start_service() {
  if [ -z "$service" ]; then
    return
  elif [ ! -d /run/systemd/system ]; then
    say "systemd does not run here, so there is no service; 'peerd daemon' runs it in the foreground"
    return
  fi
  if peerd service install; then return; fi # it returns when the daemon has said that it is ready
  [ -n "$before" ] || die "the service does not start; 'journalctl -u peerd' says why. peerd itself is installed"
  point_to "releases/$(basename "$before")"
  if ! peerd service install; then
    die "the new service does not start, and the one before neither; 'journalctl -u peerd' says why"
  fi
  new=$made
  die "the new service does not start ('journalctl -u peerd' says why); the one before runs again"
}

install() {
  choose_wheel
  choose_python
  mkdir -p "$prefix"
  [ -e "$mark" ] || [ -z "$(ls -A "$prefix")" ] ||
    die "$prefix is not empty and was not made by this script; name another --prefix"
  if [ -L "$prefix/venv" ] && [ -x "$prefix/venv/bin/python" ]; then before=$(realpath "$prefix/venv"); fi
  check_room
  if [ "$bin_dir" != none ] && [ -e "$link" ] && [ ! -L "$link" ]; then
    die "$link is there and is no link of this script's; remove it, or name another --bin-dir"
  fi
  touch "$mark"
  exec 9>"$prefix/.lock"
  flock -n 9 || die "another installation is under way in $prefix"
  mkdir -p "$prefix/releases"
  rm -rf "$prefix/tmp"
  mkdir "$prefix/tmp"
  new=$(mktemp -d "$prefix/releases/$(date -u +%Y%m%dT%H%M%S).XXX")
  chmod 755 "$new"
  trap clean_up EXIT

  say "installing into $prefix with $("$python" -V)"
  make_environment
  install_torch
  if [ -d "$wheel" ]; then
    pip "what builds peerd's wheel" "${pip_options[@]}" hatchling
    TMPDIR=$prefix/tmp "$new/bin/python" -I -m pip wheel --quiet --no-deps --no-build-isolation \
      -w "$prefix/tmp" "$wheel"
    wheel=$(echo "$prefix"/tmp/peerd-*.whl)
  fi
  pip peerd "${pip_options[@]}" -c "$prefix/tmp/constraints" "$wheel${extras:+[$extras]}"
  if [ ! -x "$new/bin/peerd" ]; then # one of that version lies beside the torch of another environment
    pip peerd "${pip_options[@]}" --no-deps --force-reinstall "$wheel"
  fi
  try_it

  made=$new
  new=''
  point_to "releases/$(basename "$made")"
  if [ "$bin_dir" != none ]; then
    mkdir -p "$bin_dir"
    ln -sfn "$prefix/venv/bin/peerd" "$link"
  fi
  start_service
  find "$prefix/releases" -mindepth 1 -maxdepth 1 ! -name "$(basename "$made")" -exec rm -rf {} +
  say "$("$prefix/venv/bin/peerd" --version) is installed; 'peerd --help' says what it can do"
}

ask_for_root
if [ -n "$uninstall" ]; then remove; else install; fi
