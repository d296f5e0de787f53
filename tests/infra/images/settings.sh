# settings.sh FOLDER: podman's settings for this shell: runc, as crun refuses hybrid cgroups, and
# limits that this user may give.
cat >"$1/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=8192:8192"]
[engine]
runtime = "runc"
END
export CONTAINERS_CONF=$1/containers.conf
