# `make report` runs the study and builds its pages; `make test` passes the tests. Both set up .venv on their first run.
.PHONY: setup report test bench docs
IN_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"
PAGES = @.venv/bin/python nbs/_pages.py
export PYTHON

setup: .venv/.setup-stamp
.venv/.setup-stamp: settings.ini setup.py
	@.ci/setup

# sample, five quick trainings, all notebooks executed in a copy, pages
report: setup
	$(PAGES) report

# what CI runs: notebooks and modules in step, every notebook's tests, then pytest
test: setup
	$(PAGES) check
	@$(IN_VENV) OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --do_print
	@$(IN_VENV) python -m pytest -q tests

# ourselves beside the peers, in one run
bench: setup
	@$(IN_VENV) python benchmarks/run.py

# pages from the notebooks as they are, nothing executed
docs: setup
	$(PAGES) docs
