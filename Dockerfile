# The images of Rollbook's parts: `docker build --target registry|sidecar|operator .` (or buildah, podman; no
# BuildKit features are used). Each holds Python, one virtual environment with its own part, the client package
# and their dependencies, pinned by hash; nothing to build or install with.
#
# A change of the sources repeats only what follows the dependencies.
ARG BASE=python:3.11-slim

# What turns sources into an installed package; stays behind, with pip and its cache.
FROM ${BASE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
# The build backend of pyproject.toml, pinned as the dependencies are.
RUN printf '%s\n' \
      'hatchling==1.33.0 --hash=sha256:415290b84f464d2884303fca8974d38e7b85579069fab02a15db0828fbb1446d' \
      'packaging==26.3 --hash=sha256:d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c' \
      'pathspec==1.1.1 --hash=sha256:a00ce642f577bf7f473932318056212bc4f8bfdf53128c78bbd5af0b9b20b189' \
      'pluggy==1.7.0 --hash=sha256:7dd7b0d8832ba3cb632c306926ded123429211b83641b35dc5c41ad2d34f9bec' \
      'tomlkit==0.15.2 --hash=sha256:05562412163a3037b94497385fb7f9204c637bc605af7a48199e41cf2272f437' \
      'trove-classifiers==2026.9.21.13 --hash=sha256:8b1ff4f9c191b1040b71c37f1e445ab99732911e3cd91de52838453a854d7a17' \
      > backend.txt \
 && pip install --no-compile --require-hashes --only-binary :all: -r backend.txt \
 && python -m venv --without-pip /opt/rollbook

# What the final images start from: only the interpreter. Without pip there is nothing to install with.
FROM ${BASE} AS base
RUN rm -rf /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/lib/python3.11/ensurepip \
      /usr/local/lib/python3.11/site-packages/*
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.vendor="Rollbook" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/rollbook/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# --- registry ---------------------------------------------------------------------------------------------
FROM tools AS registry-build
COPY requirements/registry.txt ./requirements.txt
# Bytecode is made now and never checked again: the root file system is read-only where this runs.
RUN pip --python /opt/rollbook/bin/python install --no-compile --require-hashes --only-binary :all: \
      -r requirements.txt \
 && find /opt/rollbook -type d -name tests -prune -exec rm -rf {} + \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY registry ./registry
# Only the client and this part are here, so only they are in the wheel.
RUN pip wheel --no-deps --no-build-isolation -w dist . \
 && pip --python /opt/rollbook/bin/python install --no-compile --no-deps dist/*.whl \
 && find /opt/rollbook/bin ! -type d ! -name 'python*' ! -name rollbook ! -name rollbook-registry -delete \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib/python3.11/site-packages/rollbook*

FROM base AS registry
LABEL org.opencontainers.image.title="rollbook-registry" \
      org.opencontainers.image.description="The book of Rollbook, a service registry for Kubernetes"
COPY --from=registry-build /opt/rollbook /opt/rollbook
# Import everything once: it proves that the dependencies are complete, and leaves the bytecode of those modules
# of the standard library that are used (the base image has none, and a read-only file system can't keep it).
RUN PYTHONDONTWRITEBYTECODE= python -c "import importlib, pkgutil; \
[importlib.import_module(m.name) for p in ('rollbook', 'rollbook_registry') \
for m in pkgutil.walk_packages(importlib.import_module(p).__path__, p + '.') if not m.name.endswith('__main__')]"
USER 65532:65532
EXPOSE 8848 9848 7848
ENTRYPOINT ["rollbook-registry"]

# --- sidecar ----------------------------------------------------------------------------------------------
FROM tools AS sidecar-build
COPY requirements/sidecar.txt ./requirements.txt
RUN pip --python /opt/rollbook/bin/python install --no-compile --require-hashes --only-binary :all: \
      -r requirements.txt \
 && find /opt/rollbook -type d -name tests -prune -exec rm -rf {} + \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY sidecar ./sidecar
RUN pip wheel --no-deps --no-build-isolation -w dist . \
 && pip --python /opt/rollbook/bin/python install --no-compile --no-deps dist/*.whl \
 && find /opt/rollbook/bin ! -type d ! -name 'python*' ! -name rollbook ! -name rollbook-sidecar -delete \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib/python3.11/site-packages/rollbook*

FROM base AS sidecar
LABEL org.opencontainers.image.title="rollbook-sidecar" \
      org.opencontainers.image.description="Beats and cached lookups beside each pod, for Rollbook"
COPY --from=sidecar-build /opt/rollbook /opt/rollbook
RUN PYTHONDONTWRITEBYTECODE= python -c "import importlib, pkgutil; \
[importlib.import_module(m.name) for p in ('rollbook', 'rollbook_sidecar') \
for m in pkgutil.walk_packages(importlib.import_module(p).__path__, p + '.') if not m.name.endswith('__main__')]"
USER 65532:65532
EXPOSE 8849 8850
ENTRYPOINT ["rollbook-sidecar"]

# --- operator (and webhook: `rollbook-webhook` in the same image) -----------------------------------------
FROM tools AS operator-build
COPY requirements/operator.txt ./requirements.txt
RUN pip --python /opt/rollbook/bin/python install --no-compile --require-hashes --only-binary :all: \
      -r requirements.txt \
 && find /opt/rollbook -type d -name tests -prune -exec rm -rf {} + \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY operator ./operator
RUN pip wheel --no-deps --no-build-isolation -w dist . \
 && pip --python /opt/rollbook/bin/python install --no-compile --no-deps dist/*.whl \
 && find /opt/rollbook/bin ! -type d ! -name 'python*' ! -name rollbook ! -name rollbook-operator ! -name rollbook-webhook -delete \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/rollbook/lib/python3.11/site-packages/rollbook*

FROM base AS operator
LABEL org.opencontainers.image.title="rollbook-operator" \
      org.opencontainers.image.description="Between Kubernetes and the book: Rollbook's operator and webhook"
COPY --from=operator-build /opt/rollbook /opt/rollbook
RUN PYTHONDONTWRITEBYTECODE= python -c "import importlib, pkgutil; \
[importlib.import_module(m.name) for p in ('rollbook', 'rollbook_operator') \
for m in pkgutil.walk_packages(importlib.import_module(p).__path__, p + '.') if not m.name.endswith('__main__')]"
USER 65532:65532
EXPOSE 8080 8081 9443
ENTRYPOINT ["rollbook-operator"]
