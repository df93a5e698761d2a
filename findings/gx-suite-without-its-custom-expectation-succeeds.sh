#!/usr/bin/env bash
# great-expectations 1.24.1, pandas 3.1.1, Python 3.11: a suite of a file project loses an expectation, and then
# succeeds. A custom expectation is a subclass; its JSON has only the type's name. A process that has not imported the
# subclass gets the suite without that expectation: ExpectationSuite logs the failure and goes on
# (great_expectations/core/expectation_suite.py, _build_expectation, called for each entry of the JSON). Nothing in the
# suite or in the validation result says that an entry of the file was left out, so data that the expectation refuses
# pass with "success": true. A misspelt type in the JSON has the same effect.
#
# Output, on a brightness of -1 and 300, in the process that defines the expectation and in one that does not:
#   defined here: 1 expectation in the suite, success False
#   defined elsewhere: 0 expectations in the suite, success True
#
# Exits 0 while this is so, 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet "great-expectations==1.24.1" "pandas==3.1.1"
export GX_ANALYTICS_ENABLED=False
cat > check.py <<'PY'
import sys

import great_expectations as gx
import pandas as pd
from great_expectations.expectations import ExpectColumnValuesToBeBetween

context = gx.get_context(mode="file", project_root_dir="project")
if sys.argv[1] == "here":

    class ExpectBrightnessToBePlausible(ExpectColumnValuesToBeBetween):
        column: str = "brightness"
        min_value: float = 0
        max_value: float = 255

    context.suites.add(gx.ExpectationSuite("pictures")).add_expectation(ExpectBrightnessToBePlausible())
suite = context.suites.get("pictures")
asset = context.data_sources.add_or_update_pandas("frames").add_dataframe_asset("pictures")
batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": pd.DataFrame({"brightness": [-1, 300]})})
count = len(suite.expectations)
print(f"defined {sys.argv[1]}: {count} expectation{'s' * (count != 1)} in the suite, success {batch.validate(suite).success}")
PY
output=$(for place in here elsewhere; do env/bin/python check.py "$place" 2> log | tail -n 1; done)
printf '%s\n' "$output"
expected='defined here: 1 expectation in the suite, success False
defined elsewhere: 0 expectations in the suite, success True'
[[ $output == "$expected" ]] || { tail -n 3 log; echo "the behaviour has changed"; exit 1; }
