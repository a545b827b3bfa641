#!/bin/sh
# Removes from a control image what it has no use for, besides what install.sh does. trim.sh policy-proxy | trainer
# Downloads go without the optional accelerator in both.
set -eu
cd /opt/accord/lib/python3.11/site-packages
rm -rf hf_xet hf_xet-* hf_xet.libs
case "$1" in
policy-proxy) # of transformers, tokenizers and configurations alone work without torch; the command line is in the other images
    find transformers/models \( -name 'modeling_*' -o -name 'modular_*' -o -name 'image_processing_*' -o -name 'video_processing_*' -o -name 'feature_extraction_*' \) -delete
    rm -rf pygments rich typer ;;
trainer) # the bytecode of the Kubernetes client's models, 24 MB: a start takes seconds longer
    rm -rf kubernetes/client/*/__pycache__ ;;
esac
