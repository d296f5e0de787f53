#!/usr/bin/env bash
# backup.sh FILE: MLflow's databases and all objects as one tar; while all runs.
set -euo pipefail
file=$(realpath -m "${1:?FILE}")
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
umask 077
work=$(mktemp -d "$file.XXXXXX")
trap 'rm -rf "$work"' EXIT
# databases first: what they name is then surely among the objects
for database in mlflow mlflow_auth; do
	$compose exec -T postgres pg_dump -U mlflow -Fc "$database" >"$work/$database.dump"
done
$compose run --rm --no-deps -T buckets python /buckets.py save >"$work/objects.tar"
tar -cf "$work/all.tar" -C "$work" mlflow.dump mlflow_auth.dump objects.tar
mv "$work/all.tar" "$file"
echo "$file: $(stat -c %s "$file") bytes"
