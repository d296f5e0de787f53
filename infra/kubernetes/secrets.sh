#!/usr/bin/env bash
# Make base/*.env, the secrets of a cluster: new passwords, and S3 from the environment.
#   AWS_ENDPOINT_URL                             where S3 is
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY     of Ray's workers: the bucket of DVC's remote alone
#   MLFLOW_S3_ID, MLFLOW_S3_KEY, MLFLOW_BUCKET   of MLflow's server: its bucket alone; a bucket's
#                                                name is taken for all of the world on AWS
set -euo pipefail
cd "$(dirname "$0")/base"
: "${AWS_ENDPOINT_URL:?is where S3 is}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
: "${MLFLOW_S3_ID:?is the key of the server}" "${MLFLOW_S3_KEY:?}" "${MLFLOW_BUCKET:?is the bucket of the server}"
for file in postgres.env server.env node.env; do
	if [ -e "$file" ]; then
		echo "error: base/$file: is there already, and holds the cluster's secrets" >&2
		exit 1
	fi
done
umask 077
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
# s3 ID KEY
s3() {
	echo "AWS_ENDPOINT_URL=$AWS_ENDPOINT_URL"
	echo "AWS_ACCESS_KEY_ID=$1"
	echo "AWS_SECRET_ACCESS_KEY=$2"
	echo "AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}"
}
postgres=$(random)
echo "POSTGRES_PASSWORD=$postgres" >postgres.env
cat >server.env <<END
MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow:$postgres@postgres:5432/mlflow
MLFLOW_AUTH_DATABASE_URI=postgresql+psycopg2://mlflow:$postgres@postgres:5432/mlflow_auth
MLFLOW_AUTH_ADMIN_USERNAME=admin
MLFLOW_AUTH_ADMIN_PASSWORD=$(random)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)
MLFLOW_BUCKET=$MLFLOW_BUCKET
$(s3 "$MLFLOW_S3_ID" "$MLFLOW_S3_KEY")
END
cat >node.env <<END
MLFLOW_TRACKING_URI=http://mlflow:5000
MLFLOW_TRACKING_USERNAME=gliotrail
MLFLOW_TRACKING_PASSWORD=$(random)
$(s3 "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY")
END
echo "made postgres.env, server.env and node.env in $PWD"
