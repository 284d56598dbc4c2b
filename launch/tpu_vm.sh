#!/usr/bin/env bash
# Runs a ddpm-jax command on a Cloud TPU slice that exists only for it: create, install, run, collect, delete.
#
#   launch/tpu_vm.sh --dry_run --zone us-west4-a --type v5litepod-16 --bucket gs://BUCKET/runs \
#     train --config imagenet64_adm --workdir runs/imagenet64_adm
#
# The bucket is mounted as runs/ on every host, so that all hosts see the work directory. New files in --workdir are copied to the
# same place on this machine at the end. If a --spot slice is taken away, nothing is lost: run the same line again.
# Prepared data sets are read from runs/data. Copy them there once:
#   gcloud storage rsync --recursive ~/tensorflow_datasets gs://BUCKET/runs/data
#
#   --zone Z, --type T        where, and which slice: v5litepod-16, v5p-32, v6e-8, ...
#   --bucket gs://B/DIR       where runs/ is kept
#   --name N                  of the slice (default ddpm-jax)
#   --version V               of the TPU software (default: by the type)
#   --spot                    a cheaper slice that may be taken away
#   --keep                    do not delete the slice at the end
#   --dry_run                 print the commands, run none
set -euo pipefail

name=ddpm-jax zone='' type='' bucket='' version='' spot='' keep='' dry_run=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --name | --zone | --type | --bucket | --version)
      [[ $# -ge 2 ]] || { echo "tpu_vm.sh: $1 needs a value." >&2; exit 2; }
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --spot | --keep | --dry_run)
      printf -v "${1#--}" yes
      shift
      ;;
    *)
      echo "tpu_vm.sh: unknown option $1; its first lines say which there are." >&2
      exit 2
      ;;
  esac
done
if [[ -z $zone || -z $type || $bucket != gs://* || $# -eq 0 ]]; then
  echo "usage: launch/tpu_vm.sh [--dry_run] --zone ZONE --type TYPE --bucket gs://BUCKET/DIR COMMAND ..." >&2
  exit 2
fi
if [[ -z $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
cd "$(dirname "$0")/.."

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

slice() { # slice VERB ARGUMENTS ...: gcloud, on this slice
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

everywhere() { # a command on every host of the slice
  slice ssh --worker=all --command="$1"
}

quoted() {
  printf '%q ' "$@"
}

bucket_name=${bucket#gs://}
bucket_name=${bucket_name%%/*}
directory=${bucket#gs://"$bucket_name"}
directory=${directory#/}
workdir=''
for ((i = 1; i <= $#; i++)); do
  next=$((i + 1))
  case ${!i} in
    --workdir) workdir=${!next:-} ;;
    --workdir=*) workdir=${!i#*=} ;;
  esac
done
if [[ $workdir && $workdir != runs/?* ]]; then
  echo "tpu_vm.sh: --workdir $workdir would be deleted with the slice: choose one in runs/, which is the bucket." >&2
  exit 2
fi

# create
slice create --accelerator-type="$type" --version="$version" ${spot:+--spot}
if [[ -z $keep ]]; then
  trap 'slice delete --quiet' EXIT
fi

# install: this checkout, and the bucket as runs/
archive=$(mktemp -d)/ddpm_jax.tar.gz
run git archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:ddpm_jax.tar.gz" --zone="$zone" --worker=all
everywhere "set -e
mkdir -p ddpm_jax runs && tar -xzf ddpm_jax.tar.gz -C ddpm_jax
curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv -q --allow-existing --python 3.12 venv
~/.local/bin/uv pip install -q --python venv './ddpm_jax[tpu]'
command -v gcsfuse || {
  echo 'deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-jammy main' |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -sS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
}
mountpoint -q runs || gcsfuse --implicit-dirs ${directory:+--only-dir=$directory} $bucket_name runs"

# run: one process per host; they find each other
code=0
everywhere "DDPM_JAX_DATA=runs/data venv/bin/ddpm-jax $(quoted "$@")" || code=$?

# collect
if [[ $workdir ]]; then
  run mkdir -p "$workdir"
  run gcloud storage rsync --recursive "$bucket/${workdir#runs/}" "$workdir"
fi
exit "$code"
