# The serving images, without PyTorch, pip or a compiler. From the root of the repository:
#
#   docker build -f deploy/serve.Dockerfile --target cpu -t ganserve:cpu .
#   docker build -f deploy/serve.Dockerfile --target gpu -t ganserve:gpu .
#
# The base is a tag that gets security fixes. To pin it to the byte, add its digest, which
# `docker buildx imagetools inspect python:3.11-slim-bookworm` prints:
#   --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
# A mirror of Python packages, a proxy, an authority of your own: --secret id=pip_conf,src=pip.conf
#
# The base needs Python 3.11 or newer with venv. It serves for the GPU too: CUDA and cuDNN are
# installed as wheels, and the driver comes from the node.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# checkov:skip=CKV_DOCKER_7:The tag is in the default of the argument, where checkov does not look.
FROM ${PYTHON_IMAGE} AS source
WORKDIR /src
COPY deploy/images_install.py deploy/
COPY pyproject.toml constraints.txt ./

FROM source AS cpu-dependencies
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 deploy/images_install.py dependencies cpu tracing

FROM source AS gpu-dependencies
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 deploy/images_install.py dependencies gpu tracing

# Pure Python, so the same for both; apart from the rest, so that an update is a small pull.
FROM cpu-dependencies AS project
COPY README.md ./
COPY gantrain gantrain
COPY ganserve ganserve
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 deploy/images_install.py project ganserve


FROM ${PYTHON_IMAGE} AS runtime
ENV GANSERVE_MODELS=/models \
    HOME=/tmp \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/venv/bytecode
WORKDIR /tmp
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
# Calls; metrics and probes.
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
# Healthy is ready: loaded, warmed up and not draining. Not urlopen, which would ask the proxy that
# docker's configuration may give to containers.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "\
import os, sys, http.client; \
port = int(os.environ.get('GANSERVE_METRICS_PORT', '9090')); \
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=2); \
connection.request('GET', '/readyz'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["ganserve"]
CMD ["serve"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG LICENSES=NOASSERTION
LABEL org.opencontainers.image.title="ganserve" \
      org.opencontainers.image.description="Serves image generators over gRPC" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"

FROM runtime AS gpu
# The driver's parts that a node lends to the container. Which devices, the node decides.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GANSERVE_DEVICE=cuda
COPY --from=gpu-dependencies /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv

# The last one is what a build makes that names no target.
FROM runtime AS cpu
ENV GANSERVE_DEVICE=cpu
COPY --from=cpu-dependencies /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv
