# The training image, without pip or a compiler. From the root of the repository:
#
#   docker build -f deploy/train.Dockerfile -t gantrain .
#   docker run --rm -v ./runs:/runs gantrain train --data digits --run-dir /runs/digits
#
# The package index's own build of PyTorch runs on NVIDIA GPUs and on CPUs, and takes several GB.
# For the small one for CPUs, give a pip.conf that names PyTorch's index for them:
#   --secret id=pip_conf,src=pip.conf
# For the base and how to pin it, see serve.Dockerfile.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# checkov:skip=CKV_DOCKER_7:The tag is in the default of the argument, where checkov does not look.
FROM ${PYTHON_IMAGE} AS dependencies
WORKDIR /src
COPY deploy/images_install.py deploy/
COPY pyproject.toml constraints.txt ./
# With ONNX Runtime for CPUs, which proves what is exported.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 deploy/images_install.py dependencies train cpu

# Apart from the rest, so that an update is a small pull.
FROM dependencies AS project
COPY README.md ./
COPY ganserve ganserve
COPY gantrain gantrain
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 deploy/images_install.py project gantrain


FROM ${PYTHON_IMAGE} AS train
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=project /opt/project /opt/venv
# LOGNAME, because PyTorch asks for the user's name and this one has no entry.
ENV HOME=/tmp \
    LOGNAME=gantrain \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPYCACHEPREFIX=/opt/venv/bytecode
WORKDIR /tmp
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM
# A run ends by itself; there is no port to ask.
HEALTHCHECK NONE
ENTRYPOINT ["gantrain"]
CMD ["--help"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG LICENSES=NOASSERTION
LABEL org.opencontainers.image.title="gantrain" \
      org.opencontainers.image.description="Trains image generators and exports them" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"
