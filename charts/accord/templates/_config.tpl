{{/* A service's YAML: what the chart sets, then `config` of the values over it. */}}

{{- define "accord.tlsClient" -}}
ca: /etc/accord/tls/ca.crt
{{- if .Values.tls.mutual }}
cert: /etc/accord/tls/tls.crt
key: /etc/accord/tls/tls.key
{{- end }}
{{- end -}}

{{- define "accord.serverConfig" -}}
listen: 0.0.0.0:50051
{{- if .Values.metrics.enabled }}
metrics_listen: 0.0.0.0:9090
{{- end }}
{{- if .Values.tls.enabled }}
tls:
  cert: /etc/accord/tls/tls.crt
  key: /etc/accord/tls/tls.key
  {{- if .Values.tls.mutual }}
  client_ca: /etc/accord/tls/ca.crt
  {{- end }}
{{- end }}
{{- end -}}

{{- define "accord.modelConfig" -}}
base_model: {{ .Values.model.name | quote }}
artefacts: {{ .Values.artefacts.uri | default "/var/lib/accord/artefacts" | quote }}
{{- end -}}

{{- define "accord.ownConfig.policy" -}}
{{ include "accord.modelConfig" . }}
{{- if gt (int .Values.policy.gpu.count) 0 }}
device: cuda
{{- end }}
{{- if .Values.policy.engine.enabled }}
backend: vllm
remote:
  url: http://127.0.0.1:8000
  start_seconds: {{ .Values.policy.engine.startupSeconds }}
  {{- if not .Values.artefacts.uri }}
  adapters_here: /var/lib/accord/artefacts
  adapters_there: /var/lib/accord/artefacts
  {{- end }}
{{- end }}
{{- end -}}

{{- define "accord.ownConfig.reward" -}}
{{ include "accord.modelConfig" . }}
{{- if gt (int .Values.reward.gpu.count) 0 }}
device: cuda
{{- end }}
{{- end -}}

{{- define "accord.ownConfig.feedback" -}}
policy: {{ include "accord.address" (dict "root" . "component" "policy") | quote }}
{{- if .Values.tls.enabled }}
policy_tls:
  {{- include "accord.tlsClient" . | nindent 2 }}
{{- end }}
{{- if .Values.reward.enabled }}
reward: {{ include "accord.address" (dict "root" . "component" "reward") | quote }}
{{- if .Values.tls.enabled }}
reward_tls:
  {{- include "accord.tlsClient" . | nindent 2 }}
{{- end }}
{{- end }}
ledger: /var/lib/accord/state/ledger.sqlite
jobs: /var/lib/accord/state/jobs
{{- end -}}

{{- define "accord.ownConfig.trainer" -}}
{{ include "accord.modelConfig" . }}
model_folder: {{ include "accord.modelFolder" . }}
runs: /var/lib/accord/shared/runs
database: {{ .Values.database.url | default "sqlite:////var/lib/accord/state/registry.sqlite" | quote }}
endpoints:
  {{- range $component := list "policy" "reward" "feedback" }}
  {{ $component }}: {{ ternary (include "accord.address" (dict "root" $ "component" $component)) "" (index $.Values $component).enabled | quote }}
  {{- end }}
  {{- if .Values.tls.enabled }}
  tls:
    {{- include "accord.tlsClient" . | nindent 4 }}
  {{- end }}
{{- if eq .Values.trainer.launcher "kubernetes" }}
{{ include "accord.kubernetesConfig" . }}
{{- else if .Values.trainer.config.kubernetes }}
{{- fail "trainer.config.kubernetes is of no use with trainer.launcher local: leave it out" }}
{{- else }}
stop_runs: true
server: {drain_seconds: {{ include "accord.drainSeconds" (dict "root" . "component" "trainer") }}}
{{- end }}
{{- end -}}

{{- define "accord.kubernetesConfig" -}}
launcher: kubernetes
kubernetes:
  image: {{ include "accord.image" (dict "root" . "component" "run" "target" "training") | quote }}
  image_pull_policy: {{ include "accord.pullPolicy" (dict "root" . "component" "run") }}
  {{- with .Values.images.pullSecrets }}
  image_pull_secrets: {{ toJson . }}
  {{- end }}
  instance: {{ .Release.Name | quote }}
  owner: {kind: Deployment, name: {{ include "accord.name" (dict "root" . "component" "trainer") }}}
  service_account: {{ include "accord.serviceAccount" (dict "root" . "component" "run") }}
  claims:
    - {claim: {{ include "accord.claim" (dict "root" . "name" "work") }}, mount_path: /var/lib/accord/shared}
    - {claim: {{ include "accord.claim" (dict "root" . "name" "models") }}, mount_path: /var/cache/accord/models}
    {{- if not .Values.artefacts.uri }}
    - {claim: {{ include "accord.claim" (dict "root" . "name" "artefacts") }}, mount_path: /var/lib/accord/artefacts}
    {{- end }}
  {{- if .Values.tls.enabled }}
  secrets:
    - {secret: {{ .Values.tls.secret | quote }}, mount_path: /etc/accord/tls}
  {{- end }}
  {{- with .Values.artefacts.secret }}
  secret_environment: [{{ . | quote }}]
  {{- end }}
  environment: {HF_HUB_OFFLINE: "1"}
{{- end -}}

{{- define "accord.config" -}}
{{- $own := include (printf "accord.ownConfig.%s" .component) .root | fromYaml -}}
{{- $server := dict "server" (include "accord.serverConfig" .root | fromYaml) -}}
{{- $given := deepCopy (index .root.Values .component).config -}}
{{- include "accord.joinedSecrets" (dict "own" ($own.kubernetes | default dict) "given" ($given.kubernetes | default dict)) -}}
{{- mergeOverwrite $server $own $given | toYaml -}}
{{- end -}}

{{/* Puts the secrets that the chart gives to runs before those of the values, in place: merging would put the one list in place of the other. */}}
{{- define "accord.joinedSecrets" -}}
{{- $given := .given -}}
{{- range $list := list "secrets" "secret_environment" -}}
{{- if and (get $.own $list) (get $given $list) -}}
{{- $_ := set $given $list (concat (get $.own $list) (get $given $list) | uniq) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Runs of a trainer that starts them in its own pod end with it, and are given the time that they have to checkpoint. */}}
{{- define "accord.drainSeconds" -}}
{{- $config := (index .root.Values .component).config -}}
{{- $server := $config.server | default dict -}}
{{- $local := and (eq .component "trainer") (eq .root.Values.trainer.launcher "local") -}}
{{- int (ceil (float64 ($server.drain_seconds | default (ternary ($config.stop_grace_seconds | default 120) 30 $local)))) -}}
{{- end -}}
