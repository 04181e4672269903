# Models as an image: a repository (NAME/VERSION/model.onnx), and a program that copies it.
#
#   docker build -f deploy/model.Dockerfile --build-arg VERSION=3 -t ganserve-models:3 models/
#
# As an init container it copies the repository from /repository into the volume at /models. As
# an image volume (Kubernetes 1.35) it needs no copy: mount its subPath `repository` at /models.
#
# The base needs sh, chmod, cp, mkdir, mktemp, mv and rm, no more. To pin it, see serve.Dockerfile.
ARG COPIER_IMAGE=busybox:1.37-musl
# checkov:skip=CKV_DOCKER_7:The tag is in the default of the argument, where checkov does not look.
FROM ${COPIER_IMAGE}
COPY --chown=65532:65532 . /repository
USER 65532:65532
HEALTHCHECK NONE
# Under another name first: a server that reads the volume at this moment never sees half a version.
# One that is there already is left alone, for versions never change.
ENTRYPOINT ["/bin/sh", "-euc", "\
partial=; \
trap 'rm -rf \"$partial\"' EXIT; \
cd /repository; \
for version in */*/; do \
  version=${version%/}; \
  target=/models/$version; \
  if [ -e \"$target\" ]; then continue; fi; \
  mkdir -p \"${target%/*}\"; \
  partial=$(mktemp -d \"${target%/*}/.copy.XXXXXX\"); \
  cp -r \"$version/.\" \"$partial\"; \
  chmod 755 \"$partial\"; \
  mv -T \"$partial\" \"$target\" || [ -e \"$target\" ]; \
  echo \"copied $version\"; \
done"]
ARG VERSION=unknown
ARG SOURCE=unknown
ARG LICENSES=NOASSERTION
LABEL org.opencontainers.image.title="ganserve models" \
      org.opencontainers.image.description="A repository of image generators for ganserve" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="${LICENSES}"
