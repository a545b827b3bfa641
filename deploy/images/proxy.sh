#!/bin/sh
# Removes from the policy proxy what a process without torch cannot use: of transformers it needs tokenizers and configurations, its downloads go without the
# optional accelerator, and the command line is in the other images.
set -eu
cd /opt/accord/lib/python3.11/site-packages
find transformers/models \( -name 'modeling_*' -o -name 'modular_*' -o -name 'image_processing_*' -o -name 'video_processing_*' -o -name 'feature_extraction_*' \) -delete
rm -rf hf_xet hf_xet-* hf_xet.libs pygments rich typer
