#!/usr/bin/env bash
# Makes NAME-lock.txt: bash requirements/compile_part.sh NAME PYTHON (isaaclab or gr00t; Python 3.12, Linux x86_64).
# The resolver downloads what it needs to read dependencies; nothing is installed. No host name gets into the result.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="${1:?usage: bash requirements/compile_part.sh NAME PYTHON}" python="${2:?usage: bash requirements/compile_part.sh NAME PYTHON}"
[[ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" == 3.12 ]] || { echo "needs Python 3.12" >&2; exit 4; }
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --dry-run --ignore-installed --report "$work/report.json" -r "$here/$name.in"
"$python" - "$work/report.json" "$here/$name-lock.txt" << 'END'
import json, re, sys

report, lock = sys.argv[1:]
rows = []
for item in json.load(open(report, encoding="utf-8"))["install"]:
    name = re.sub("[-_.]+", "-", item["metadata"]["name"].lower())
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    rows.append(f"{name}=={item['metadata']['version']} --hash=sha256:{digest}")
head = "# Complete and hashed, for Python 3.12 on Linux x86_64. Made by requirements/compile_part.sh."
open(lock, "w", encoding="utf-8").write("\n".join([head, *sorted(rows)]) + "\n")
END
echo "wrote requirements/$name-lock.txt"
