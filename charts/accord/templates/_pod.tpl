{{/* Parts of pods. Every helper takes one dict: root, component. */}}

{{- define "accord.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "accord.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "accord.probeCommand" -}}
{{- $command := list "python" "-m" "accord.rpc.probe" "127.0.0.1:50051" "--service" .service -}}
{{- if .root.Values.tls.enabled -}}
{{- $command = concat $command (list "--ca" "/etc/accord/tls/ca.crt" "--server-name" (printf "%s.%s.svc" (include "accord.name" (dict "root" .root "component" .component)) .root.Release.Namespace)) -}}
{{- if .root.Values.tls.mutual -}}{{- $command = concat $command (list "--cert" "/etc/accord/tls/tls.crt" "--key" "/etc/accord/tls/tls.key") -}}{{- end -}}
{{- end -}}
{{- toJson $command -}}
{{- end -}}

{{/* How a probe asks: by gRPC where the kubelet can (1.24, no TLS), else by a command. service: a name of the health service, "" for the whole. */}}
{{- define "accord.probe" -}}
{{- if and (include "accord.kube" (dict "root" .root "version" "1.24")) (not .root.Values.tls.enabled) -}}
grpc:
  port: 50051
  service: {{ .service | quote }}
{{- else -}}
exec:
  command: {{ include "accord.probeCommand" . }}
{{- end }}
{{- end -}}

{{/* A probe by command starts an interpreter, so it is asked more seldom and given more time. */}}
{{- define "accord.probes" -}}
{{- $exec := or .root.Values.tls.enabled (not (include "accord.kube" (dict "root" .root "version" "1.24"))) -}}
{{- $seconds := int (index .root.Values .component).startupSeconds -}}
{{- if and (eq .component "policy") .root.Values.policy.engine.enabled -}}
{{- $seconds = max $seconds (add .root.Values.policy.engine.startupSeconds 60) -}}{{/* it serves only when its engine does */}}
{{- end -}}
startupProbe:
  {{- include "accord.probe" (merge (dict "service" "") .) | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: {{ ternary 10 3 $exec }}
  failureThreshold: {{ div (add $seconds 4) 5 }}
readinessProbe:
  {{- include "accord.probe" (merge (dict "service" "") .) | nindent 2 }}
  periodSeconds: {{ ternary 10 5 $exec }}
  timeoutSeconds: {{ ternary 10 3 $exec }}
  failureThreshold: 3
livenessProbe:
  {{- include "accord.probe" (merge (dict "service" "live") .) | nindent 2 }}
  periodSeconds: {{ ternary 30 10 $exec }}
  timeoutSeconds: {{ ternary 20 5 $exec }}
  failureThreshold: 6
{{- end -}}

{{- define "accord.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $device := dict .gpu.resource (int .gpu.count) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $device "requests" $device) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* defaults and, in place of those of the same name, own: a server that applies objects refuses a name that is there twice. */}}
{{- define "accord.mergedEnv" -}}
{{- $names := list -}}
{{- range .own }}{{- $names = append $names .name }}{{- end -}}
{{- $env := list -}}
{{- range .defaults }}{{- if not (has .name $names) }}{{- $env = append $env . }}{{- end }}{{- end -}}
{{- concat $env .own | toYaml -}}
{{- end -}}

{{- define "accord.secretEnv" -}}
{{- dict "name" .key "valueFrom" (dict "secretKeyRef" (dict "name" .secret "key" .key)) | toYaml -}}
{{- end -}}

{{- define "accord.env" -}}
{{- $defaults := list (dict "name" "HF_HUB_OFFLINE" "value" "1") -}}
{{- if and (eq .component "trainer") .root.Values.database.secret -}}
{{- $defaults = append $defaults (include "accord.secretEnv" (dict "secret" .root.Values.database.secret "key" "PGPASSWORD") | fromYaml) -}}
{{- end -}}
{{- include "accord.mergedEnv" (dict "defaults" $defaults "own" (index .root.Values .component).env) -}}
{{- end -}}

{{- define "accord.envFrom" -}}
{{- $from := (index .root.Values .component).envFrom -}}
{{- if and .root.Values.artefacts.secret (ne .component "feedback") -}}
{{- $from = append $from (dict "secretRef" (dict "name" .root.Values.artefacts.secret)) -}}
{{- end -}}
{{- with $from -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Which claims a component has: name, path, readOnly, subPath. */}}
{{- define "accord.mountList" -}}
{{- $mounts := list -}}
{{- if ne .component "feedback" -}}
{{- $mounts = append $mounts (dict "name" "models" "mountPath" "/var/cache/accord/models") -}}
{{- if not .root.Values.artefacts.uri -}}
{{- $mounts = append $mounts (dict "name" "artefacts" "mountPath" "/var/lib/accord/artefacts" "readOnly" (ne .component "trainer")) -}}
{{- end -}}
{{- end -}}
{{- if eq .component "trainer" -}}{{- $mounts = append $mounts (dict "name" "work" "mountPath" "/var/lib/accord/shared") -}}{{- end -}}
{{- if eq .component "feedback" -}}{{- $mounts = append $mounts (dict "name" "work" "mountPath" "/var/lib/accord/shared/labels" "subPath" "labels") -}}{{- end -}}
{{- if or (eq .component "feedback") (and (eq .component "trainer") (not .root.Values.database.url)) -}}
{{- $mounts = append $mounts (dict "name" .component "mountPath" "/var/lib/accord/state") -}}
{{- end -}}
{{- toYaml $mounts -}}
{{- end -}}

{{- define "accord.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/accord}
- {name: config, mountPath: /etc/accord, readOnly: true}
{{- if .root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/accord/tls, readOnly: true}
{{- end }}
{{ include "accord.mountList" . }}
{{- end -}}

{{- define "accord.volumes" -}}
{{- $root := .root -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
  emptyDir: {}
- name: config
  configMap:
    name: {{ include "accord.name" . }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ required "tls.secret is required with tls.enabled: a secret with tls.crt, tls.key and ca.crt" .root.Values.tls.secret | quote }}
{{- end }}
{{- range include "accord.mountList" . | fromYamlArray }}
- name: {{ .name }}
  persistentVolumeClaim:
    claimName: {{ include "accord.claim" (dict "root" $root "name" .name) }}
{{- end }}
{{- end -}}

{{/* A link to the base model, made before a container wants it there. It is the model's own: one link for all would, where another release or a
revision that was rolled back moved it, give an engine that starts again another model under the old name. */}}
{{- define "accord.modelFolder" -}}
/var/cache/accord/models/base-{{ .Values.model.name | sha256sum | trunc 8 }}
{{- end -}}

{{/* Puts the base model into the cache before a container wants it there. */}}
{{- define "accord.fetchContainer" -}}
- name: fetch-model
  image: {{ include "accord.image" (dict "root" .root "component" .component "target" (include "accord.target" .)) | quote }}
  imagePullPolicy: {{ include "accord.pullPolicy" . }}
  command: [python, -m, accord.models.fetch, {{ .root.Values.model.name | quote }}, --link, {{ include "accord.modelFolder" .root }}{{ if .root.Values.model.download }}, --download{{ end }}]
  {{- $own := index .root.Values .component }}
  {{- $defaults := list }}
  {{- with .root.Values.model.tokenSecret }}
  {{- $defaults = list (include "accord.secretEnv" (dict "secret" . "key" "HF_TOKEN") | fromYaml) }}
  {{- end }}
  {{- if or $defaults $own.env }}
  env:
    {{- include "accord.mergedEnv" (dict "defaults" $defaults "own" $own.env) | nindent 4 }}
  {{- end }}
  {{- with $own.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "accord.containerSecurity" . | nindent 4 }}
  resources:
    {{- toYaml (index .root.Values .component).resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: cache, mountPath: /var/cache/accord}
    - {name: models, mountPath: /var/cache/accord/models}
{{- end -}}

{{/* Seconds from the wish that a pod ends to SIGKILL: 5 before SIGTERM, the drain, 5 to close; an engine stops only then and has 10 more. */}}
{{- define "accord.graceSeconds" -}}
{{- add (include "accord.drainSeconds" . | int) (ternary 20 10 (and (eq .component "policy") .root.Values.policy.engine.enabled)) -}}
{{- end -}}

{{/* All containers of a pod are asked to stop at once: the engine waits until the policy service, which drains, listens no more. */}}
{{- define "accord.enginePreStop" -}}
import socket, time
end = time.monotonic() + {{ add (include "accord.drainSeconds" . | int) 10 }}
while time.monotonic() < end:
    try:
        socket.create_connection(("127.0.0.1", 50051), timeout=1).close()
    except ConnectionRefusedError:
        break
    except OSError:
        pass
    time.sleep(1)
{{- end -}}

{{/* vLLM beside the policy service, on loopback; loads adapters out of the same volume. */}}
{{- /* USER: no engine's image knows the pod's user, and who asks the system for its name gets an error instead. */ -}}
{{- define "accord.engineContainer" -}}
{{- $engine := .root.Values.policy.engine -}}
- name: engine
  image: {{ required "policy.engine.image is required with policy.engine.enabled: a vLLM image with a tag or digest" $engine.image | quote }}
  imagePullPolicy: {{ include "accord.pullPolicy" . }}
  args: {{ concat (list "--model" (include "accord.modelFolder" .root) "--served-model-name" .root.Values.model.name "--host" "127.0.0.1" "--port" "8000" "--enable-lora") $engine.args | toJson }}
  env:
    {{- $defaults := list (dict "name" "VLLM_ALLOW_RUNTIME_LORA_UPDATING" "value" "True") (dict "name" "HF_HUB_OFFLINE" "value" "1") (dict "name" "USER" "value" "accord") }}
    {{- include "accord.mergedEnv" (dict "defaults" $defaults "own" $engine.env) | nindent 4 }}
  securityContext:
    {{- include "accord.containerSecurity" . | nindent 4 }}
  startupProbe:
    exec:
      command: [python3, -c, "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: {{ div (add (int $engine.startupSeconds) 9) 10 }}
  lifecycle:
    preStop:
      exec:
        command:
          - python3
          - -c
          - |
            {{- include "accord.enginePreStop" . | nindent 12 }}
  resources:
    {{- include "accord.resources" (dict "resources" $engine.resources "gpu" $engine.gpu) | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    - {name: cache, mountPath: /var/cache/accord}
    - {name: models, mountPath: /var/cache/accord/models}
    {{- if not .root.Values.artefacts.uri }}
    - {name: artefacts, mountPath: /var/lib/accord/artefacts, readOnly: true}
    {{- end }}
{{- end -}}

{{- define "accord.scheduling" -}}
{{- $own := index .root.Values .component -}}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.runtimeClass }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with $own.priorityClass }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- if $own.spread }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "accord.selector" . | nindent 8 }}
{{- end }}
{{- end -}}
