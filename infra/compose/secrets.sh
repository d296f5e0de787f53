#!/usr/bin/env bash
# Make .env, the secrets of compose.yaml, readable by its owner alone; once.
set -euo pipefail
cd "$(dirname "$0")"
if [ -e .env ]; then
	echo "error: infra/compose/.env: is there already, and holds the services' secrets" >&2
	exit 1
fi
umask 077
for name in POSTGRES_PASSWORD MLFLOW_PASSWORD MLFLOW_COOKIES MLFLOW_S3_ID MLFLOW_S3_KEY \
	RAY_TOKEN S3_ID S3_KEY; do
	echo "$name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
done >.env
echo "made $PWD/.env"
