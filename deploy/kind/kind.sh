#!/bin/sh
# kind.sh up | test | down: Accord in a kind cluster, with images of this checkout. Nothing is fetched from a model hub.
# Each step can be repeated. TAG names the images (default: dev); KIND_CLUSTER the cluster (default: accord).
set -eu
cd "$(dirname "$0")/../.."
tag=${TAG:-dev}
cluster=${KIND_CLUSTER:-accord}
context=kind-$cluster
images="policy policy-proxy reward feedback trainer training" # policy-proxy for the test of deploy/compose.yaml, which runs it as it is

need() {
    for program; do
        command -v "$program" > /dev/null || { echo "error: $program is not installed; kind-up needs docker, kind, kubectl and helm" >&2; exit 1; }
    done
}

up() {
    need docker kind kubectl helm
    kind get clusters | grep -qx "$cluster" || kind create cluster --name "$cluster" --config deploy/kind/cluster.yaml --wait 180s
    # shellcheck disable=SC2086 # a list of names
    TAG=$tag IMAGE_BUILD="docker build" python3 tools/images.py build $images
    for image in $images; do kind load docker-image --name "$cluster" "accord/$image:$tag"; done
    again=$(helm status accord --kube-context "$context" --namespace accord > /dev/null 2>&1 && echo yes || true)
    helm upgrade --install accord charts/accord --kube-context "$context" --namespace accord --create-namespace \
        --values charts/accord/ci/cluster-values.yaml --set images.tag="$tag" --wait --timeout 20m
    if [ "$again" ]; then # the tag is the same, so nothing has told the pods that its images are others
        deployments="deployment --selector app.kubernetes.io/instance=accord --namespace accord --context $context"
        # shellcheck disable=SC2086 # options
        kubectl rollout restart $deployments
        # shellcheck disable=SC2086
        kubectl rollout status $deployments --timeout=20m
    fi
    helm test accord --kube-context "$context" --namespace accord --timeout 20m
    echo "Accord runs in the kind cluster $cluster, and a Generate, a Label, a training run and a Score went through it. Next: make kind-test, or"
    echo "  kubectl --context $context -n accord port-forward service/accord-policy 50051:50051 &"
    echo "  accord generate 'Name three rivers.' --policy 127.0.0.1:50051"
    echo "  kubectl --context $context -n accord get pods"
    echo "  make kind-down"
}

# The tests make namespaces of their own beside the release of `up`.
check() {
    need docker kind kubectl helm
    kubeconfig=$(mktemp)
    trap 'rm -f "$kubeconfig"' EXIT
    kind get kubeconfig --name "$cluster" > "$kubeconfig"
    KUBECONFIG=$kubeconfig TAG=$tag ACCORD_CLUSTER_REQUIRED=1 make cluster-test
}

down() {
    need kind
    kind delete cluster --name "$cluster"
}

case "${1:-}" in
up) up ;;
test) check ;;
down) down ;;
*) echo "usage: kind.sh up | test | down" >&2 && exit 2 ;;
esac
