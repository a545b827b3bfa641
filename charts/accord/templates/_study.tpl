{{/* What a client inside the cluster needs beside its command: endpoints.yaml, certificates, folders to write to. Takes the root. */}}

{{- define "accord.sharedFolder" -}}
/var/lib/accord/shared/labels
{{- end -}}

{{- define "accord.clientMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/accord}
- {name: config, mountPath: /etc/accord, readOnly: true}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/accord/tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "accord.clientVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: cache
  emptyDir: {sizeLimit: 1Gi}
- name: config
  configMap:
    name: {{ include "accord.name" (dict "root" . "component" "endpoints") }}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ required "tls.secret is required with tls.enabled: a secret with tls.crt, tls.key and ca.crt" .Values.tls.secret | quote }}
{{- end }}
{{- end -}}

{{/* What Kubernetes refuses to change of a Job; the digest in its name is of this, so whatever is neither here nor mutable breaks an upgrade. */}}
{{- define "accord.studyFixed" -}}
{{- if include "accord.kube" (dict "root" . "version" "1.31") -}}
podFailurePolicy: # exit code 2: what was asked for is wrong; a lost node counts for nothing
  rules:
    - {action: FailJob, onExitCodes: {containerName: study, operator: In, values: [2]}}
    - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
{{ end -}}
template:
  {{- include "accord.studyPod" . | nindent 2 }}
{{- end -}}

{{- define "accord.studyPod" -}}
{{- $study := .Values.study -}}
{{- $image := ternary "run" "study" (empty (without (values $study.image) "")) -}}
metadata:
  labels:
    {{- include "accord.selector" (dict "root" . "component" "study") | nindent 4 }}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    {{- include "accord.podSecurity" . | nindent 4 }}
  {{- with .Values.images.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $study.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $study.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: study
      image: {{ include "accord.image" (dict "root" . "component" $image "target" "training") | quote }}
      imagePullPolicy: {{ include "accord.pullPolicy" (dict "root" . "component" $image) }}
      command: [accord, study]
      args:
        - --target=cluster
        - --home=/var/lib/accord/shared/studies/{{ $study.name }}
        - --recipe={{ ternary "/etc/accord/study/recipe.yaml" $study.recipe (not (empty $study.ownRecipe)) }}
        {{- if not (kindIs "invalid" $study.seed) }}
        - --seed={{ int64 $study.seed }}
        {{- end }}
      env:
        - {name: ACCORD_ENDPOINTS, value: /etc/accord/endpoints.yaml}
        {{- $names := list }}
        {{- range $study.env }}{{- $names = append $names .name }}{{- end }}
        {{- if not (has "HF_HUB_OFFLINE" $names) }}
        - {name: HF_HUB_OFFLINE, value: "1"}
        {{- end }}
        {{- with $study.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $study.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "accord.containerSecurity" . | nindent 8 }}
      resources:
        {{- toYaml $study.resources | nindent 8 }}
      volumeMounts:
        {{- include "accord.clientMounts" . | nindent 8 }}
        - {name: work, mountPath: /var/lib/accord/shared}
        {{- if $study.ownRecipe }}
        - {name: recipe, mountPath: /etc/accord/study, readOnly: true}
        {{- end }}
  volumes:
    {{- include "accord.clientVolumes" . | nindent 4 }}
    - name: work
      persistentVolumeClaim:
        claimName: {{ include "accord.claim" (dict "root" . "name" "work") }}
    {{- if $study.ownRecipe }}
    - name: recipe
      configMap:
        name: {{ include "accord.name" (dict "root" . "component" "study") }}
    {{- end }}
{{- end -}}
