set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

# Lists the recipes
_default:
    @just --list

# Serves cats on $PORT, or on 8080 if it is not set
run *arguments:
    uv run catscii.py "$@"

# Runs the tests, with any arguments of pytest
test *arguments:
    uv run test_catscii.py "$@"

# Checks style, types and workflows
lint:
    uvx ruff check
    uv run --with mypy --with-requirements catscii.py --with opentelemetry-exporter-otlp-proto-http --with sentry-sdk \
        mypy --strict catscii.py
    go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.7

# Writes requirements.txt, for pip install --require-hashes
requirements:
    uv export --quiet --script catscii.py --no-header > requirements.txt

# Measures the art (`just bench art PICTURE...`), the service (`just bench serve`), and more
bench *arguments:
    uv run bench_catscii.py "$@"

# Builds the image and loads it into Docker
docker: (_needs "Linux .*")
    nix build .#dockerImage
    ./result | docker load

# Builds the image and deploys it to fly.io
deploy: (_needs "Linux x86_64") docker
    fly deploy --local-only

# Fails if this machine builds no such image
_needs machine:
    @[[ "$(uname -sm)" =~ ^$1$ ]] || { \
        echo "$(uname -sm) builds another image, or none: see docs/image.md, Macs and other architectures" >&2; exit 1; }

# Downloads this month's database of countries, dbip-country-lite.mmdb: DB-IP Lite, CC BY 4.0, https://db-ip.com
geoip:
    curl --fail --silent --show-error --location \
        "https://download.db-ip.com/free/dbip-country-lite-$(date -u +%Y-%m).mmdb.gz" | gunzip > dbip-country-lite.mmdb.new
    mv dbip-country-lite.mmdb.new dbip-country-lite.mmdb
