# Four images from one file: `operator`, `runtime`, `router` and `model`.
# Dependencies come from uv.lock, hash-checked, in one layer that changes only with the lock; the project's own code
# is a last thin layer. Build with `make images`, or with any builder: docker build --target runtime .

FROM debian:12-slim AS base
ENV LANG=C.UTF-8 \
    PATH=/opt/turbo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

# uv, from PyPI. The arguments without a value are a private certificate authority, a package index and a cache of
# uv's, where the builder has one: none of them becomes part of an image.
FROM base AS uv
ARG UV_VERSION=0.13.9
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG PIP_INDEX_URL
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"

# What the lock says, as two lists with hashes: so a change of pyproject.toml that leaves the lock as it was
# leaves the big layers as they were.
FROM uv AS lock
COPY pyproject.toml uv.lock /src/
RUN cd /src && for extra in operator runtime router; do \
        /opt/uv/bin/uv export --quiet --frozen --no-cache --no-default-groups --no-emit-project --no-header \
            --extra "$extra" -o "/$extra.txt" || exit 1; \
    done

# The project's own code as it will stand in /opt/turbo, without its dependencies.
FROM uv AS code
ARG SSL_CERT_FILE
ARG UV_DEFAULT_INDEX
ARG UV_NO_CACHE=true
ARG UV_CACHE_DIR
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY runtime /src/runtime
RUN /opt/uv/bin/uv build --quiet --wheel --out-dir /dist /src \
    && /opt/uv/bin/uv venv --quiet /opt/turbo \
    && UV_LINK_MODE=copy /opt/uv/bin/uv pip install --quiet --python /opt/turbo/bin/python --compile-bytecode \
        --no-deps /dist/*.whl \
    && mkdir -p /code/bin /code/lib/python3.11/site-packages \
    && mv /opt/turbo/bin/turbo /code/bin/ \
    && mv /opt/turbo/lib/python3.11/site-packages/turbo_* /code/lib/python3.11/site-packages/

# The installer of the two stages below brings uv for the one command that needs it, and takes it away again.
FROM base AS operator
ARG UV_VERSION=0.13.9
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_NO_CACHE=true
ARG UV_CACHE_DIR
COPY --from=lock /operator.txt /opt/turbo/requirements.txt
COPY --chmod=755 dev/install-locked.sh /tmp/
RUN /tmp/install-locked.sh "${UV_VERSION}" \
    && useradd --uid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin turbo
COPY --from=code /code /opt/turbo
USER 65532:65532
ENTRYPOINT ["turbo"]
CMD ["operator"]

FROM base AS runtime
ARG UV_VERSION=0.13.9
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_NO_CACHE=true
ARG UV_CACHE_DIR
COPY --from=lock /runtime.txt /opt/turbo/requirements.txt
COPY --chmod=755 dev/install-locked.sh /tmp/
RUN /tmp/install-locked.sh "${UV_VERSION}" \
    && useradd --uid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin turbo
COPY --from=code /code /opt/turbo
USER 65532:65532
ENTRYPOINT ["turbo"]
CMD ["serve", "--help"]

# vLLM's router and the activator, for TurboDeployments with routing Router.
FROM base AS router
ARG UV_VERSION=0.13.9
ARG SSL_CERT_FILE
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ARG UV_NO_CACHE=true
ARG UV_CACHE_DIR
COPY --from=lock /router.txt /opt/turbo/requirements.txt
COPY --chmod=755 dev/install-locked.sh /tmp/
RUN /tmp/install-locked.sh "${UV_VERSION}" \
    && useradd --uid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin turbo
COPY --from=code /code /opt/turbo
USER 65532:65532
ENTRYPOINT ["turbo"]
CMD ["activator"]

# A model file and a way to copy it: what a Job needs to put it on a PersistentVolumeClaim mounted at /models.
# The file comes from a second build context: --build-context model-file=FOLDER
FROM debian:12-slim AS model
COPY --from=model-file / /model/
USER 65532:65532
ENTRYPOINT ["cp", "-v", "-u", "-r", "/model/."]
CMD ["/models/"]
