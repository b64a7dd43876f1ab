# `make report` runs the study and builds its pages; `make test` passes the tests. Both set up .venv on their first run.
.PHONY: setup report test check notebooks pytest bench docs colab versions rehearse
# The shell's own $PWD: make's CURDIR would be expanded a second time below a path with a dollar sign.
IN_VENV = PATH="$$PWD/.venv/bin:$$PATH"
PAGES = .venv/bin/python tools/pages.py
NBDEV_TEST = $(IN_VENV) OMP_NUM_THREADS=1 ARTINSIGHT_RUNS="$$PWD/runs" python tools/nbdev_test.py --n_workers 2 --do_print $(if $(SLOW),--flags slow)
# Plugins that other packages bring are left out: pytest would compile all of them anew, in each worker.
PYTEST = $(IN_VENV) OMP_NUM_THREADS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
	python -m pytest -p xdist.plugin -q -n 2 --dist $(if $(SLOW),loadfile,worksteal) -o tmp_path_retention_policy=failed \
	$(if $(SLOW),--slow) tests
# A temporary folder of its own, for every user, that goes whatever happens: tests leave gigabytes of pictures otherwise.
SCRATCH = TMPDIR=$$(mktemp -d) && export TMPDIR && chmod 1777 "$$TMPDIR" && trap 'rm -rf "$$TMPDIR"' EXIT && \
	trap 'exit 130' INT TERM HUP
export PYTHON

setup: .venv/.setup-stamp
.venv/.setup-stamp: settings.ini setup.py
	@.ci/setup

# sample, five quick trainings, the notebooks that show them, pages;
# WEIGHTS=imagenet begins with torchvision's weights, DATA=folder takes one's own AI-ArtBench
report: setup
	@$(PAGES) report

# what CI runs: all three parts, whichever fails; SLOW=1 runs the slow cells and tests, too
test: setup
	@$(SCRATCH); failed=; { $(PAGES) check > "$$TMPDIR/check" 2>&1; } & \
	$(NBDEV_TEST) || failed="$$failed notebooks"; \
	wait $$! || failed="$$failed check"; cat "$$TMPDIR/check"; \
	[ -z "$$failed" ] || echo "failed:$$failed (see above); pytest runs all the same" >&2; \
	$(PYTEST) && [ -z "$$failed" ]

# modules, notebooks and README in step, and what nbdev makes of the notebooks for the site
check: setup
	@$(PAGES) check

# the tests that stand in the notebooks
notebooks: setup
	@$(SCRATCH); $(NBDEV_TEST)

# the tests across modules
pytest: setup
	@$(SCRATCH); $(PYTEST)

# ourselves beside the peers, in one run
bench: setup
	@$(IN_VENV) python benchmarks/run.py

# README, and pages from the notebooks as they are, nothing executed
docs: setup
	@$(PAGES) docs

# each notebook alone, in an empty folder, as Colab would run it
colab: setup
	@$(IN_VENV) python tools/colab.py

# the fast tests on Python 3.10 to 3.13, with the development set and with the newest releases
versions: setup
	@$(IN_VENV) python tools/versions.py

# the whole path at 1 % of AI-ArtBench; PERCENT=100 for all of it
rehearse: setup
	@$(IN_VENV) python tests/rehearse.py $(or $(PERCENT),1)
