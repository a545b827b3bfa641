{{/* Names, labels, images, addresses. Helpers take the root, or one dict whose missing key is an error. */}}

{{- define "accord.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- if gt (len $full) 44 -}}
{{- fail (printf "the name %q has %d characters; at most 44 are allowed, so that every object's name stays below 63: set fullnameOverride" $full (len $full)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q cannot begin the name of a Service: lower-case letters, digits and hyphens are allowed, a letter first: set fullnameOverride" $full) -}}
{{- end -}}
{{- if contains "." .Release.Name -}}
{{- fail (printf "the release name %q has a dot, and its Jobs are named after it: choose a name of lower-case letters, digits and hyphens" .Release.Name) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "accord.name" -}}
{{- $root := required "accord.name: root" .root -}}
{{- printf "%s-%s" (include "accord.fullname" $root) (required "accord.name: component" .component) -}}
{{- end -}}

{{- define "accord.selector" -}}
{{- $root := required "accord.selector: root" .root -}}
{{- /* the trainer labels its Jobs by itself, and always with the name accord */ -}}
app.kubernetes.io/name: {{ ternary "accord" (default $root.Chart.Name $root.Values.nameOverride) (eq .component "run") | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ required "accord.selector: component" .component | quote }}
{{- end -}}

{{- define "accord.labels" -}}
{{- $root := required "accord.labels: root" .root -}}
{{ include "accord.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: accord
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | quote }}
{{- end -}}

{{/* root, component (whose values may name another image; run: that of the Jobs), target (the image of the Dockerfile) */}}
{{- define "accord.image" -}}
{{- $root := required "accord.image: root" .root -}}
{{- $own := include "accord.imageValues" . | fromYaml -}}
{{- $registry := $own.registry | default $root.Values.images.registry -}}
{{- $name := $own.name | default (printf "accord/%s" (required "accord.image: target" .target)) -}}
{{- $tag := $own.tag | default $root.Values.images.tag | default $root.Chart.AppVersion -}}
{{- if eq $tag "latest" -}}{{- fail (printf "%s: the tag latest changes under a running release; give another tag or a digest" .component) -}}{{- end -}}
{{- if $registry -}}{{ $registry }}/{{- end -}}{{ $name }}{{ if $own.digest }}@{{ $own.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}

{{- define "accord.imageValues" -}}
{{- if eq .component "run" }}{{ toYaml .root.Values.trainer.runImage }}{{ else }}{{ toYaml (index .root.Values .component).image }}{{ end -}}
{{- end -}}

{{- define "accord.pullPolicy" -}}
{{- (include "accord.imageValues" . | fromYaml).pullPolicy | default .root.Values.images.pullPolicy -}}
{{- end -}}

{{/* The target of the Dockerfile that a component runs. */}}
{{- define "accord.target" -}}
{{- $values := .root.Values -}}
{{- if and (eq .component "policy") (ne (include "accord.backend" .root) "transformers") -}}policy-proxy
{{- else if and (eq .component "trainer") (eq $values.trainer.launcher "local") -}}training
{{- else -}}{{ .component }}
{{- end -}}
{{- end -}}

{{- define "accord.backend" -}}
{{- ternary "vllm" (.Values.policy.config.backend | default "transformers") .Values.policy.engine.enabled -}}
{{- end -}}

{{/* host:port of a component for clients in the cluster; one address for each replica where weights are held. */}}
{{- define "accord.address" -}}
{{- $root := .root -}}
{{- $host := include "accord.name" . -}}
{{- if has .component (list "policy" "reward") -}}{{- $host = printf "%s-replicas" $host -}}{{- end -}}
{{- $domain := empty $root.Values.clusterDomain | ternary "" (printf ".%s" $root.Values.clusterDomain) -}}
{{- printf "%s%s.%s.svc%s:50051" (ternary "dns:///" "" (has .component (list "policy" "reward"))) $host $root.Release.Namespace $domain -}}
{{- end -}}

{{- define "accord.serviceAccount" -}}
{{- include "accord.name" . -}}
{{- end -}}

{{- define "accord.claim" -}}
{{- $claim := index .root.Values.storage (required "accord.claim: name" .name) -}}
{{- $claim.existingClaim | default (printf "%s-%s" (include "accord.fullname" .root) .name) -}}
{{- end -}}

{{- define "accord.kube" -}}
{{- semverCompare (printf ">=%s-0" .version) .root.Capabilities.KubeVersion.Version | ternary "true" "" -}}
{{- end -}}
