"""S3's two buckets, each by its own keys: the server's and the clients'.

`make`: they are there. `save`: all objects as a tar stream to stdout; `load`: from stdin into them.
"""

import os
import shutil
import sys
import tarfile
from tempfile import TemporaryFile
from typing import Any

import boto3

KEYS = {
    "mlflow": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gliotrail": ("NODE_S3_ID", "NODE_S3_KEY"),
}


def client(bucket: str) -> Any:
    """S3 by the keys of one bucket."""
    key, secret = (os.environ[name] for name in KEYS[bucket])
    return boto3.client("s3", aws_access_key_id=key, aws_secret_access_key=secret)


def make() -> None:
    """Make what is not there."""
    for bucket in KEYS:
        s3 = client(bucket)
        if bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=bucket)
        print(f"bucket {bucket} is there")


def save() -> None:
    """Write BUCKET/KEY for each object."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for bucket in KEYS:
            s3 = client(bucket)
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                for found in page.get("Contents", ()):
                    told = tarfile.TarInfo(f"{bucket}/{found['Key']}")
                    told.size = found["Size"]
                    tar.addfile(told, s3.get_object(Bucket=bucket, Key=found["Key"])["Body"])


def load() -> None:
    """Put each object back."""
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            bucket, _, key = member.name.partition("/")
            body = tar.extractfile(member)
            assert body is not None
            with TemporaryFile() as whole:  # S3's client wants to go back; a stream can't
                shutil.copyfileobj(body, whole)
                whole.seek(0)
                client(bucket).upload_fileobj(whole, bucket, key)
            count += 1
    print(f"{count} objects", file=sys.stderr)


if __name__ == "__main__":
    {"make": make, "save": save, "load": load}[sys.argv[1]]()
