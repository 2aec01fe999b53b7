#!/bin/sh
# Fetches d3 from npm into the report's assets and records what was fetched.
#   tools/vendor_charts.sh 7.9.2
set -eu
version=${1:?say which version of d3, for example 7.9.2}
assets=$(cd "$(dirname "$0")/.." && pwd)/src/portolan/reports/assets
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "d3@$version" >/dev/null && tar xzf "d3-$version.tgz")
cp "$work/package/dist/d3.min.js" "$assets/d3.min.js"
cp "$work/package/LICENSE" "$assets/d3.LICENSE"
sum=$(sha256sum "$assets/d3.min.js" | cut -d' ' -f1)
cat > "$assets/VERSIONS.toml" <<END
# Written by tools/vendor_charts.sh; a test compares the hash with the file.
[d3]
version = "$version"
file = "d3.min.js"
sha256 = "$sum"
license = "ISC"
home = "https://d3js.org"
END
echo "d3 $version: $sum"
