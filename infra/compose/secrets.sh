#!/usr/bin/env bash
# secrets.sh [NAME]: make .env, the secrets of compose.yaml, and client.env, what a user's shell
# needs; once, readable by their owner alone. With the machine's NAME (as others reach it) also a
# certificate for the profile `tls`: tls/ca.pem for clients, tls/server.pem for the proxy.
set -euo pipefail
cd "$(dirname "$0")"
for file in .env client.env; do
	if [ -e $file ]; then
		echo "error: infra/compose/$file: is there already, and holds the services' secrets" >&2
		exit 1
	fi
done
umask 077
for name in POSTGRES_PASSWORD MLFLOW_ADMIN_PASSWORD MLFLOW_PASSWORD MLFLOW_COOKIES \
	MLFLOW_S3_ID MLFLOW_S3_KEY RAY_TOKEN S3_ID S3_KEY; do
	echo "$name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
done >.env.partial
. ./.env.partial

# client MLFLOW S3 RAY: what to source
client() {
	cat <<END
export RAY_ADDRESS=$3
export RAY_API_SERVER_ADDRESS=$3
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=$RAY_TOKEN
export MLFLOW_TRACKING_URI=$1
export MLFLOW_TRACKING_USERNAME=gliotrail
export MLFLOW_TRACKING_PASSWORD=$MLFLOW_PASSWORD
export AWS_ENDPOINT_URL=$2
export AWS_ACCESS_KEY_ID=$S3_ID
export AWS_SECRET_ACCESS_KEY=$S3_KEY
export AWS_DEFAULT_REGION=us-east-1
END
}

if [ -n "${1:-}" ]; then
	mkdir -p tls
	case $1 in *[!0-9.]*) kind=DNS ;; *) kind=IP ;; esac
	openssl req -x509 -newkey rsa:3072 -nodes -days 825 -subj "/CN=Gliotrail's own authority" \
		-addext basicConstraints=critical,CA:TRUE -keyout tls/ca.key -out tls/ca.pem 2>/dev/null
	openssl req -newkey rsa:3072 -nodes -subj "/CN=$1" -keyout tls/server.key -out tls/server.csr 2>/dev/null
	openssl x509 -req -in tls/server.csr -CA tls/ca.pem -CAkey tls/ca.key -CAcreateserial -days 825 \
		-extfile <(echo "subjectAltName=$kind:$1") -out tls/server.crt 2>/dev/null
	cat tls/server.crt tls/server.key >tls/server.pem
	chmod 644 tls/ca.pem tls/server.pem # the proxy's user is not this one; the folder is closed
	rm tls/server.csr tls/server.crt tls/server.key
	echo "TLS_NAME=$1" >>.env.partial
	{
		client "https://$1:5443" "https://$1:8443" "https://$1:8266"
		# copy tls/ca.pem to the client, and name it here
		for name in REQUESTS_CA_BUNDLE AWS_CA_BUNDLE SSL_CERT_FILE; do
			echo "export $name=\${GLIOTRAIL_CA:-$PWD/tls/ca.pem}"
		done
	} >client.env
else
	client http://127.0.0.1:5000 http://127.0.0.1:8333 http://127.0.0.1:8265 >client.env
fi
mv .env.partial .env
echo "made .env and client.env in $PWD"
[ -n "${1:-}" ] || echo "all on this machine only; for others: secrets.sh NAME, and the profile tls"
