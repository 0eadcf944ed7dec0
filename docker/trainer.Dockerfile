# `wit train`, `wit evaluate` and the demo, on CUDA or without.
#   docker build -f docker/trainer.Dockerfile -t webimagetext-trainer .
#   docker run --gpus all --ipc host --user "$(id -u):$(id -g)" -v /data:/data webimagetext-trainer \
#       torchrun --nproc_per_node 8 -m pipeline train --shards /data/shards --out /data/checkpoint
# CUDA, cuDNN and NCCL come with torch, as wheels that the lock pins: a CUDA base image would bring them twice. The
# host brings the driver and NVIDIA's container toolkit.
FROM python:3.11-slim-bookworm

# What `--compile` builds its kernels with, on a CPU and on a GPU.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# Machine code for any x86-64 or ARM processor, as in the workers' image.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility NUMBA_CPU_NAME=generic PYTHONUNBUFFERED=1

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
COPY docker/warm.sh docker/warm.sh
# Each compiled function runs once; numba takes machine code from a folder only if the user may write to it.
RUN sh docker/warm.sh && python -m compileall -q queries pipeline dedup model && \
    find queries pipeline dedup model -name __pycache__ -exec chmod 1777 {} +

# No root; and any other user of `--user` has a home and a place for results too.
RUN useradd --uid 1000 wit && install -d -m 1777 /home/wit /runs
ENV HOME=/home/wit
USER wit
WORKDIR /runs
CMD ["wit", "--help"]
