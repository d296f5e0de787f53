"""Make MLflow's user `gliotrail`, of workers and clients; give it NODE_PASSWORD if it is there.

It is no admin: it reads all, and manages the experiments and models that it makes.
"""

import os
import sys

import requests

USER = "gliotrail"


def ask(server: str, method: str, what: str) -> requests.Response:
    """Ask MLflow, as its admin, for a change of the user."""
    return requests.request(
        method,
        f"{server}/api/2.0/mlflow/users/{what}",
        json={"username": USER, "password": os.environ["NODE_PASSWORD"]},
        auth=(os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]),
        timeout=60,
    )


if __name__ == "__main__":
    answer = ask(sys.argv[1], "POST", "create")
    if "RESOURCE_ALREADY_EXISTS" in answer.text:
        answer = ask(sys.argv[1], "PATCH", "update-password")
    answer.raise_for_status()
    print(f"user {USER} is there")
