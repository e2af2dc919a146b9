# `make demo` and `make test` need Python 3.11+, make and git only; they set up VENV when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
# The tests of a file run on one worker, so that its fixtures are made once.
PYTEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

# Names that vulture reports as unused but that are called by others: by MLflow, Jinja, torch, pickle, typer and Python; by
# Ray Tune and Optuna; and fields, methods and stages that are looked up by their names in strings.
CALLED_BY_OTHERS := _load_pyfunc,filters,forward,find_class,get_data,get_filename,load_*,md,__getattr__
CALLED_BY_OTHERS := $(CALLED_BY_OTHERS),on_trial_*,iteration,trial_id,stop_all,setup,reset_config,cleanup
CALLED_BY_OTHERS := $(CALLED_BY_OTHERS),set_search_properties,save_to_dir,checkpoint_dir,session_str,search_space
CALLED_BY_OTHERS := $(CALLED_BY_OTHERS),calibration,transform,evaluate,evaluate_new,_teacher,_vit,_joint,_context,partition_digest,weights_fingerprint,content_digest
CALLED_BY_OTHERS := $(CALLED_BY_OTHERS),yaml_implicit_resolvers,layer_norm_eps,num_channels,model_type,do_resize,do_normalize
CALLED_BY_OTHERS := $(CALLED_BY_OTHERS),fill_uninitialized_memory,allow_tf32

.PHONY: demo test test-all check bad-inputs clean

demo: $(SETUP)
	$(BIN)/fedpgp demo

test: $(SETUP)
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py
	$(BIN)/vulture fedpgp pipelines --ignore-decorators '@app.*,@track.*,@*_validator' --ignore-names '$(CALLED_BY_OTHERS)'
	$(BIN)/python -m pip check

bad-inputs: $(SETUP)
	FEDPGP_REWRITE_BAD_INPUTS=1 $(BIN)/python -m pytest tests/test_bad_inputs.py

$(SETUP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
