# make demo: a picture from a prompt, from nothing but Python 3.11 and a C++ compiler.
# make test: everything that is checked on a CPU without a network.
# make bench: the demo model measured, beside what `make peers` installed; bench-sd15: at full size;
# bench-gpu: at full size on a GPU, where PyTorch and diffusers are for CUDA.
PYTHON ?= python3
USER_VENV := .venv
DEV_VENV := .venv-dev
DEV := $(DEV_VENV)/bin

.PHONY: demo test lint slow bench bench-sd15 bench-gpu peers clean

demo: $(USER_VENV)/installed
	$(USER_VENV)/bin/sdfast generate "a small red circle on a blue background" --seed 0 --out demo.png

test: $(DEV_VENV)/installed
	$(DEV)/pytest -n auto --dist loadfile -m "not slow and not gpu"

slow: $(DEV_VENV)/installed
	$(DEV)/pytest -m slow

lint: $(DEV_VENV)/installed
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/lint-imports

# Results of another machine or version are not gone on with: give another OUT then.
OUT ?= bench-results
RUNS ?= 1
PEERS := .venv-peers
SD15 := $(OUT)/sd15

bench: $(DEV_VENV)/installed
	$(DEV)/sdfast bench pipeline --out $(OUT)/demo/pipeline
	$(DEV)/sdfast bench peers --checkpoint export/demo/checkpoint --environments $(PEERS) \
		--rounds 2 --out $(OUT)/demo/peers
	$(DEV)/sdfast bench samplers --samplers euler,dpmpp_2m --steps 10,20 --prompts 24 \
		--out $(OUT)/demo/samplers

bench-sd15: $(SD15)/bundle/bundle.json $(SD15)/int8/bundle.json
	$(DEV)/sdfast bench peers --bundle $(SD15)/bundle --checkpoint $(SD15)/checkpoint \
		--environments $(PEERS) --steps 20 --guidance 7.5 --runs $(RUNS) --out $(SD15)/peers \
		--variant sdfast-spared:low_memory=true --variant sdfast-cached:cache=3 \
		--variant sdfast-int8:bundle=$(SD15)/int8 \
		--variant sdfast-int8-cached:bundle=$(SD15)/int8,cache=3
	$(DEV)/sdfast bench pipeline --bundle $(SD15)/bundle --batch 1,2,4 --steps 4 \
		--runs $(RUNS) --out $(SD15)/pipeline

bench-gpu: $(SD15)/bundle/bundle.json
	$(DEV)/python benchmarks/gpu.py --bundle $(SD15)/bundle --pictures 1000 --json $(OUT)/gpu/forms.json
	$(DEV)/sdfast bench peers --device cuda --bundle $(SD15)/bundle --checkpoint $(SD15)/checkpoint \
		--environments $(PEERS) --steps 20 --guidance 7.5 --runs 10 --out $(OUT)/gpu/peers
	$(DEV)/sdfast bench pipeline --device cuda --bundle $(SD15)/bundle --batch 1,2,4,8 --runs 5 \
		--out $(OUT)/gpu/pipeline
	$(DEV)/sdfast bench samplers --device cuda --steps 20 --prompts 8 --out $(OUT)/gpu/samplers

$(SD15)/bundle/bundle.json: $(SD15)/checkpoint/model_index.json
	$(DEV)/sdfast export $(SD15)/checkpoint $(SD15)/bundle --backend openvino --overwrite

$(SD15)/int8/bundle.json: $(SD15)/checkpoint/model_index.json
	$(DEV)/sdfast export $(SD15)/checkpoint $(SD15)/int8 --backend openvino --precision int8 \
		--overwrite

$(SD15)/checkpoint/model_index.json: | $(DEV_VENV)/installed
	$(DEV)/python -c "from sdfast.export import random_checkpoint; \
		random_checkpoint('sd15', '$(SD15)/checkpoint')"

peers: $(patsubst benchmarks/peers/%.txt,$(PEERS)/%/installed,$(wildcard benchmarks/peers/*.txt))

# optimum-intel asks for torchvision, which pip may bring for another build of torch; unusable, it
# keeps transformers from loading, and nothing here needs it.
$(PEERS)/%/installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	$(@D)/bin/python -c "import torchvision" 2> /dev/null \
		|| $(@D)/bin/pip uninstall --quiet --yes torchvision
	touch $@

NATIVE := $(wildcard sdfast/native/*) CMakeLists.txt pyproject.toml

$(USER_VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(USER_VENV)
	$(USER_VENV)/bin/pip install --quiet --disable-pip-version-check .
	touch $@

$(DEV_VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(DEV_VENV)
	$(DEV)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(USER_VENV) $(DEV_VENV) build dist
