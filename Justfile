# Lists the recipes
_default:
    @just --list

# Serves cats on $PORT, 8080 if unset
run *arguments:
    uv run catscii.py {{arguments}}

# Runs the tests; arguments of pytest may follow
test *arguments:
    uv run test_catscii.py {{arguments}}

# Checks style, types and the workflow
lint:
    uvx ruff check
    uv run --with mypy --with-requirements catscii.py mypy --strict catscii.py
    go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.7
