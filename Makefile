# The two commands of the README, and what a contributor needs. Everything lives in .venv and .cache.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
.PHONY: setup demo web test test-slow lint docs figures dist clean

setup: $(STAMP)

# torch first and by itself: a range that admits a newer release pulls several gigabytes of CUDA packages. timm last and
# without its dependencies: the tests need its networks, and of torchvision only names, which tests/third_party.py holds.
# TensorRT's type stubs ask for packages that only their vendor's index has, so they come without them too. ExecuTorch
# asks for coremltools, scikit-learn, pandas and more, and needs the three beside it here; ncnn for what downloads models.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
		timm tensorrt-stubs executorch ruamel.yaml tabulate torchao ncnn
	$(BIN)/python scripts/patch_tensorrt_stubs.py
	touch $@

demo: setup
	$(BIN)/repquant demo --output runs/demo

# ONNX Runtime Web, for the tests that run a file as browsers do; they are left out without it.
web:
	npm install --prefix .cache/web --no-save --no-fund --no-audit --ignore-scripts onnxruntime-web@1.30.0

# No new workers for dead ones: the rest of the run would wait for them without end.
test: setup lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documentation as a site, in site/; nothing is loaded from a network, then or now. It opens from the folder; its search
# needs a server: python -m http.server --directory site
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The figures of docs/figures, from what was measured and lies in results/.
figures: setup
	$(BIN)/python scripts/figures.py

# The archive of the sources, and from it the wheel.
dist: setup
	$(BIN)/python -m build --no-isolation --outdir dist

clean:
	rm -rf .venv .cache runs build dist site
