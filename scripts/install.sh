#!/bin/sh
# Installs a released rpush: install.sh [VERSION [DIRECTORY]]
#
# VERSION is like 1.2.3, or latest. The archive is checked against SHA256SUMS.
# RPUSH_DOWNLOADS names another place that has the files of releases, as a mirror.
set -eu

version=${1:-latest}
dir=${2:-/usr/local/bin}
home=https://github.com/rpush-go/rpush/releases

fetch() { # URL FILE
	if command -v curl >/dev/null 2>&1; then
		curl -fsSL --retry 5 -o "$2" "$1"
	else
		wget -q -O "$2" "$1"
	fi
}

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

case $(uname -s) in
Linux) system=linux ending=tar.gz program=rpush ;;
Darwin) system=darwin ending=tar.gz program=rpush ;;
MINGW* | MSYS* | CYGWIN*) system=windows ending=zip program=rpush.exe ;;
*) fail "there is no release for $(uname -s)" ;;
esac
case $(uname -m) in
x86_64 | amd64) arch=amd64 ;;
aarch64 | arm64) arch=arm64 ;;
armv7* | armv8l) arch=arm ;;
*) fail "there is no release for $(uname -m)" ;;
esac

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

version=${version#v}
if [ "$version" = latest ]; then
	# The page of the latest release redirects to that of its tag.
	if command -v curl >/dev/null 2>&1; then
		at=$(curl -fsSLI -o "$tmp/page" -w '%{url_effective}' "$home/latest")
	else
		at=$(wget -q -S --spider "$home/latest" 2>&1 | sed -n 's/^ *[Ll]ocation: *//p' | tail -n 1)
	fi
	version=${at##*/v}
	case $version in
	[0-9]*) ;;
	*) fail "the latest version is not known; name one" ;;
	esac
fi
from=${RPUSH_DOWNLOADS:-$home/download/v$version}
file=rpush_${version}_${system}_${arch}.$ending

fetch "$from/$file" "$tmp/$file" || fail "cannot download $from/$file"
fetch "$from/SHA256SUMS" "$tmp/SHA256SUMS" || fail "cannot download $from/SHA256SUMS"
cd "$tmp"
grep " $file\$" SHA256SUMS >sum || fail "SHA256SUMS does not name $file"
if command -v sha256sum >/dev/null 2>&1; then
	sha256sum -c sum >/dev/null || fail "$file is damaged"
else
	shasum -a 256 -c sum >/dev/null || fail "$file is damaged"
fi
if [ $ending = zip ]; then
	unzip -q "$file" $program
else
	tar -xzf "$file" $program
fi
mkdir -p "$dir"
# A rename replaces a program that is running; writing to it does not.
cp $program "$dir/.$program.new"
chmod 755 "$dir/.$program.new"
mv -f "$dir/.$program.new" "$dir/$program"
"$dir/$program" version
