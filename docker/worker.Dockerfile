# Beam workers of every stage: the package, its models and its machine code on Beam's Python image, pinned by the lock.
#   docker build -f docker/worker.Dockerfile -t webimagetext-worker .
# The version is that of apache-beam in the lock; `docker/prove.py` runs these steps without Docker.
FROM apache/beam_python3.11_sdk:2.77.0

# One thread per process: Beam starts a process for each core. Machine code for any x86-64 or ARM processor, because
# numba compiles again wherever the processor is not the one that it compiled for.
ENV OMP_NUM_THREADS=1 NUMBA_CPU_NAME=generic PYTHONUNBUFFERED=1

WORKDIR /opt/webimagetext
COPY requirements/worker.lock requirements/worker.lock
RUN python -m pip install --no-cache-dir uv==0.13.9
RUN uv pip install --python "$(command -v python)" --no-cache --compile-bytecode --require-hashes -r requirements/worker.lock

COPY pyproject.toml README.md LICENSE ./
COPY queries queries
COPY pipeline pipeline
COPY dedup dedup
COPY model model
RUN uv pip install --python "$(command -v python)" --no-cache --no-deps --compile-bytecode .

# Each compiled function runs once, so that no worker compiles; the checks end the build.
COPY docker/warm.sh docker/warm.sh
COPY examples/world/text examples/world/text
RUN sh docker/warm.sh && rm -r docker examples queries pipeline dedup model build *.egg-info
