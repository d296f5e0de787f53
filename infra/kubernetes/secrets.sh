#!/usr/bin/env bash
# Make base/server.env and base/node.env, the secrets of a cluster: new passwords, and the keys of
# S3 from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).
set -euo pipefail
cd "$(dirname "$0")/base"
: "${AWS_ENDPOINT_URL:?is where S3 is}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
for file in server.env node.env; do
	if [ -e "$file" ]; then
		echo "error: base/$file: is there already, and holds the cluster's secrets" >&2
		exit 1
	fi
done
umask 077
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
postgres=$(random) mlflow=$(random)
s3="AWS_ENDPOINT_URL=$AWS_ENDPOINT_URL
AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID
AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}"
cat >server.env <<END
POSTGRES_PASSWORD=$postgres
MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow:$postgres@postgres:5432/mlflow
MLFLOW_AUTH_DATABASE_URI=postgresql+psycopg2://mlflow:$postgres@postgres:5432/mlflow_auth
MLFLOW_AUTH_ADMIN_USERNAME=gliotrail
MLFLOW_AUTH_ADMIN_PASSWORD=$mlflow
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)
$s3
END
cat >node.env <<END
MLFLOW_TRACKING_URI=http://mlflow:5000
MLFLOW_TRACKING_USERNAME=gliotrail
MLFLOW_TRACKING_PASSWORD=$mlflow
$s3
END
echo "made server.env and node.env in $PWD"
