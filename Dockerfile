# Serves a bundle:  docker build -t smash-export .
#                   docker run --rm -p 8000:8000 -p 8001:8001 -v "$PWD/digits-bundle:/bundle:ro" smash-export
# The same file builds for x86_64 and aarch64 (docker buildx build --platform linux/arm64 ...). Nothing of
# torch comes in; another runtime is one argument: --build-arg EXTRAS=openvino,serve,grpc
FROM python:3.11-slim AS build
ARG EXTRAS=cpu,serve,grpc
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY smash_base smash_base
COPY deploy_targets deploy_targets
COPY search search
COPY smash_search smash_search
COPY smash_targets smash_targets
COPY smash_export smash_export
RUN python -m venv /opt/smash-export \
    && /opt/smash-export/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:3.11-slim
COPY --from=build /opt/smash-export /opt/smash-export
ENV PATH=/opt/smash-export/bin:$PATH PYTHONUNBUFFERED=1
USER 65534:65534
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# Whichever of the two is spoken; the certificate is for clients, not for the container itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-m", "smash_export.server.healthcheck"]
ENTRYPOINT ["smash-export", "serve", "--host", "0.0.0.0"]
CMD ["model=/bundle"]
