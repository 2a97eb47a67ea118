# Two commands: `make demo` shows the whole flow, `make test` proves it. Each makes its environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# What tests, formatting and types need beside it: the demo does not wait for them.
DEV := $(VENV)/.dev
override DEMO := demo
IMAGES ?= $(wildcard ../shared/data/photos)
MINUTES ?= 13
# Tests run on two workers, each with one thread for torch and OpenCV; make test WORKERS=0 runs them in one process.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test check bench gpu-check soak fuzz clean
.DELETE_ON_ERROR:

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e ".[weights]"
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/greyhound
	@touch $@

$(DEV): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]"
	@touch $@

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/greyhound demo $(DEMO)/images
	$(BIN)/greyhound pack $(DEMO)/images --out $(DEMO)/dogs.arrow
	$(BIN)/greyhound train demo --pack $(DEMO)/dogs.arrow --out $(DEMO)/run
	$(BIN)/greyhound eval --run $(DEMO)/run --crops 10
	$(BIN)/greyhound explain --run $(DEMO)/run --boxes $(DEMO)/images/boxes.csv
	@echo "Open $(DEMO)/run/report.html"

test: $(DEV)
	$(PYTEST)

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

bench: $(STAMP)
	@test -n "$(IMAGES)" || { echo "name a folder of photographs: make bench IMAGES=FOLDER" >&2; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/greyhound benchmark --images "$(IMAGES)" --json bench.json --chart bench.png

# make says 2 for whatever the script says; its codes are in docs/gpu.md.
gpu-check: $(DEV)
	REQUIRE_GPU=1 $(BIN)/python tests/gpu_check.py $(if $(PACK),--pack "$(PACK)")

soak: $(DEV)
	$(BIN)/python tests/soak.py --minutes 30

fuzz: $(DEV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[fuzz]"
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
