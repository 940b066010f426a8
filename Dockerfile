# syntax=docker/dockerfile:1

# Two images from one file:
#   docker build --target cpu  -t unmask:cpu  .
#   docker build --target cuda -t unmask:cuda --build-arg COMPUTE_CAPS="80 90" .
# Every step is a plain command; scripts/build runs the same build outside Docker.

ARG RUST_VERSION=1.95.0
ARG CUDA_VERSION=13.0.1

FROM rust:${RUST_VERSION}-bookworm AS build-cpu
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    scripts/build cpu /out

FROM rust:${RUST_VERSION}-bookworm AS rust

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS build-cuda
ARG COMPUTE_CAPS=80
ENV CARGO_HOME=/usr/local/cargo \
    RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    scripts/build cuda /out

FROM nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu24.04 AS cuda
COPY --from=build-cuda /out/ /usr/local/lib/unmask/
COPY docker/start-cuda /usr/local/bin/unmask
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/unmask/
# The cache of models must belong to who runs the server.
RUN install --directory --owner 65532 --group 65532 /models
ENV HF_HOME=/models/huggingface
USER 65532:65532
VOLUME /models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=10m --interval=30s --timeout=10s CMD ["unmask", "ready"]
ENTRYPOINT ["unmask"]
CMD ["serve", "--host", "0.0.0.0"]

FROM debian:12.12-slim AS cpu
COPY --from=build-cpu /out/unmask /usr/local/bin/unmask
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/unmask/
# The cache of models must belong to who runs the server.
RUN install --directory --owner 65532 --group 65532 /models
ENV HF_HOME=/models/huggingface
USER 65532:65532
VOLUME /models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=10m --interval=30s --timeout=10s CMD ["unmask", "ready"]
ENTRYPOINT ["unmask"]
CMD ["serve", "--host", "0.0.0.0"]
