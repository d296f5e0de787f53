#!/usr/bin/env bash
# restore.sh FILE: put a backup into services that hold nothing yet; then `compose up`.
# Where volumes hold something, it refuses: `compose down --volumes` removes them.
set -euo pipefail
file=$(realpath "${1:?FILE}")
cd "$(dirname "$0")"
compose=${COMPOSE:-docker compose}
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -xf "$file" -C "$work" mlflow.dump mlflow_auth.dump objects.tar
$compose up -d --no-deps postgres s3
for _ in $(seq 120); do
	! $compose exec -T postgres pg_isready -q -h 127.0.0.1 -U mlflow || break
	sleep 1
done
sql() { $compose exec -T postgres psql -U mlflow -d "$1" -Atc "$2"; }
if [ "$(sql mlflow "select count(*) from information_schema.tables where table_schema = 'public'")" != 0 ]; then
	echo "error: MLflow's database holds something already; \`$compose down --volumes\` removes it" >&2
	exit 1
fi
for database in mlflow mlflow_auth; do
	$compose exec -T postgres pg_restore -U mlflow --no-owner --exit-on-error -d "$database" <"$work/$database.dump"
done
# the admin's password is of this installation, whatever the backup's was
$compose run --rm --no-deps -T schema env -u MLFLOW_AUTH_CONFIG_PATH python -c '
import os
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
users = SqlAlchemyStore()
users.init_db(os.environ["MLFLOW_AUTH_DATABASE_URI"])
users.update_user(os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], password=os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])'
$compose run --rm --no-deps -T buckets python /buckets.py make
$compose run --rm --no-deps -T buckets python /buckets.py load <"$work/objects.tar"
echo "restored; now: $compose up"
