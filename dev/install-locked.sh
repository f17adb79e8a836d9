#!/bin/sh
# Make /opt/turbo from its hashed list of requirements, inside an image that is being built.
# Argument: the version of uv. Everything that is only needed for it is gone at the end, in the same layer.
set -eu

apt-get update -q
apt-get install -q -y --no-install-recommends python3-venv
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$1"
/tmp/uv/bin/uv venv --quiet --allow-existing /opt/turbo
UV_LINK_MODE=copy /tmp/uv/bin/uv pip install --quiet --python /opt/turbo/bin/python --compile-bytecode \
    --require-hashes --no-deps -r /opt/turbo/requirements.txt
apt-get purge -q -y --auto-remove python3-venv
rm -rf /tmp/uv /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
