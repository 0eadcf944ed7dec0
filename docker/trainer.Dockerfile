# `wit train`, `wit evaluate` and the demo, on CUDA or without.
#   docker build -f docker/trainer.Dockerfile -t webimagetext-trainer .
#   docker run --gpus all --ipc host -v /data:/data webimagetext-trainer \
#       torchrun --nproc_per_node 8 -m pipeline train --shards /data/shards --out /data/checkpoint
# CUDA, cuDNN and NCCL come with torch, as wheels that the lock pins: a CUDA base image would bring them twice. The
# host brings the driver and NVIDIA's container toolkit.
FROM python:3.11-slim-bookworm

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PYTHONUNBUFFERED=1

WORKDIR /opt/webimagetext
COPY requirements/core.lock requirements/core.lock
RUN python -m pip install --no-cache-dir uv==0.13.9
RUN uv pip install --python "$(command -v python)" --no-cache --compile-bytecode --require-hashes -r requirements/core.lock

COPY pyproject.toml README.md LICENSE ./
COPY queries queries
COPY pipeline pipeline
COPY dedup dedup
COPY model model
COPY examples examples
# As a checkout: `wit demo` looks for the small world beside the package.
RUN uv pip install --python "$(command -v python)" --no-cache --no-deps -e .
CMD ["wit", "--help"]
