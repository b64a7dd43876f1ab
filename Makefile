# `make report` runs the study and builds its pages; `make test` passes the tests. Both set up .venv on their first run.
.PHONY: setup report test bench docs colab versions rehearse
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
	@$(IN_VENV) OMP_NUM_THREADS=1 ARTINSIGHT_RUNS=$(CURDIR)/runs nbdev_test --n_workers 2 --do_print
	@$(IN_VENV) OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile tests

# ourselves beside the peers, in one run
bench: setup
	@$(IN_VENV) python benchmarks/run.py

# pages from the notebooks as they are, nothing executed
docs: setup
	$(PAGES) docs

# each notebook alone, in an empty folder, as Colab would run it
colab: setup
	@$(IN_VENV) python tests/colab.py

# the fast tests on Python 3.10 to 3.13, with the development set and with the newest releases
versions: setup
	@$(IN_VENV) python tests/versions.py

# the whole path at 1 % of AI-ArtBench; PERCENT=100 for all of it
rehearse: setup
	@$(IN_VENV) python tests/rehearse.py $(or $(PERCENT),1)
