{{/* The objects that every service has. Each takes one dict: root, component. */}}

{{- define "accord.deployment" -}}
{{- $own := index .root.Values (required "accord.deployment: component" .component) -}}
{{- $weights := has .component (list "policy" "reward") -}}
{{- $engine := and (eq .component "policy") .root.Values.policy.engine.enabled -}}
{{- $fetches := or $weights (and (eq .component "trainer") (eq .root.Values.trainer.launcher "local")) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
spec:
  {{- if not $own.autoscaling.enabled }}
  replicas: {{ $own.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  {{- if $weights }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: {{ $own.rollingUpdate.maxSurge }}, maxUnavailable: {{ $own.rollingUpdate.maxUnavailable }}}
  {{- else }}
  strategy:
    type: Recreate
  {{- end }}
  selector:
    matchLabels:
      {{- include "accord.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "accord.labels" . | nindent 8 }}
        {{- with $own.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include "accord.config" . | sha256sum }}
        {{- with $own.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "accord.serviceAccount" . }}
      automountServiceAccountToken: {{ and (eq .component "trainer") (eq .root.Values.trainer.launcher "kubernetes") }}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "accord.graceSeconds" . }}
      securityContext:
        {{- include "accord.podSecurity" . | nindent 8 }}
      {{- include "accord.scheduling" . | nindent 6 }}
      {{- if $fetches }}
      initContainers:
        {{- include "accord.fetchContainer" . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "accord.image" (dict "root" .root "component" .component "target" (include "accord.target" .)) | quote }}
          imagePullPolicy: {{ include "accord.pullPolicy" . }}
          command: [python, -m, accord.{{ .component }}, /etc/accord/config.yaml]
          ports:
            - {name: grpc, containerPort: 50051, protocol: TCP}
            {{- if .root.Values.metrics.enabled }}
            - {name: metrics, containerPort: 9090, protocol: TCP}
            {{- end }}
          env:
            {{- include "accord.env" . | nindent 12 }}
          {{- include "accord.envFrom" . | nindent 10 }}
          securityContext:
            {{- include "accord.containerSecurity" . | nindent 12 }}
          {{- include "accord.probes" . | nindent 10 }}
          lifecycle:
            preStop:
              exec:
                command: [sleep, "5"]
          resources:
            {{- include "accord.resources" (dict "resources" $own.resources "gpu" $own.gpu) | nindent 12 }}
          volumeMounts:
            {{- include "accord.mounts" . | nindent 12 }}
        {{- if $engine }}
        {{- include "accord.engineContainer" . | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "accord.volumes" . | nindent 8 }}
        {{- if $engine }}
        - name: shm
          emptyDir: {medium: Memory}
        {{- end }}
{{- end -}}

{{- define "accord.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
data:
  config.yaml: |
    {{- include "accord.config" . | nindent 4 }}
{{- end -}}

{{/* headless: true gives an address for each ready replica, over which clients balance by themselves */}}
{{- define "accord.service" -}}
{{- $own := index .root.Values .component -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "accord.name" . }}{{ if .headless }}-replicas{{ end }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
  {{- with $own.serviceAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: ClusterIP
  {{- if .headless }}
  clusterIP: None
  {{- end }}
  selector:
    {{- include "accord.selector" . | nindent 4 }}
  ports:
    - name: grpc
      port: 50051
      targetPort: grpc
      protocol: TCP
      {{- if include "accord.kube" (dict "root" .root "version" "1.20") }}
      appProtocol: {{ ternary "https" "kubernetes.io/h2c" .root.Values.tls.enabled }}
      {{- end }}
    {{- if and .root.Values.metrics.enabled (not .headless) }}
    - name: metrics
      port: 9090
      targetPort: metrics
      protocol: TCP
    {{- end }}
{{- end -}}

{{- define "accord.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "accord.serviceAccount" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end -}}

{{- define "accord.disruption" -}}
{{- $own := index .root.Values .component -}}
{{- if or (gt (int $own.replicas) 1) (and $own.autoscaling.enabled (gt (int $own.autoscaling.maxReplicas) 1)) -}}
apiVersion: {{ ternary "policy/v1" "policy/v1beta1" (ne "" (include "accord.kube" (dict "root" .root "version" "1.21"))) }}
kind: PodDisruptionBudget
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $own.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "accord.selector" . | nindent 6 }}
{{- end -}}
{{- end -}}

{{- define "accord.autoscaler" -}}
{{- $scale := (index .root.Values .component).autoscaling -}}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d, at most maxReplicas (%d) is allowed" .component (int $scale.minReplicas) (int $scale.maxReplicas)) -}}
{{- end -}}
{{- if $scale.keda -}}
{{- include "accord.scaledObject" . -}}
{{- else -}}
apiVersion: {{ ternary "autoscaling/v2" "autoscaling/v2beta2" (ne "" (include "accord.kube" (dict "root" .root "version" "1.23"))) }}
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "accord.name" . }}}
  minReplicas: {{ $scale.minReplicas }}
  maxReplicas: {{ $scale.maxReplicas }}
  metrics:
    {{- if gt (int $scale.cpuPercent) 0 }}
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ $scale.cpuPercent }}}
    {{- end }}
    {{- if gt (int $scale.queueDepth) 0 }}
    - type: Pods
      pods:
        metric: {name: accord_queue_depth}
        target: {type: AverageValue, averageValue: {{ $scale.queueDepth | quote }}}
    {{- end }}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 600}
{{- end -}}
{{- end -}}

{{- define "accord.scaledObject" -}}
{{- $scale := (index .root.Values .component).autoscaling -}}
{{- if lt (int $scale.queueDepth) 1 -}}{{- fail (printf "%s.autoscaling.queueDepth must be at least 1 with keda" .component) -}}{{- end -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ include "accord.name" . }}}
  minReplicaCount: {{ $scale.minReplicas }}
  maxReplicaCount: {{ $scale.maxReplicas }}
  advanced: # cooldownPeriod is of the step to no replica, which minReplicas excludes; steps above it are the HorizontalPodAutoscaler's, which KEDA makes
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown: {stabilizationWindowSeconds: 600}
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ required (printf "%s.autoscaling.prometheus is required with keda: the address of Prometheus" .component) $scale.prometheus | quote }}
        query: {{ printf "sum(accord_queue_depth{namespace=%q, pod=~%q})" .root.Release.Namespace (printf "%s-.*" (include "accord.name" .)) | quote }}
        threshold: {{ $scale.queueDepth | quote }}
{{- end -}}

{{- define "accord.monitor" -}}
{{- $monitor := .root.Values.metrics.serviceMonitor -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "accord.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "accord.labels" . | nindent 4 }}
    {{- with $monitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "accord.selector" . | nindent 6 }}
  endpoints:
    - {port: metrics, interval: {{ $monitor.interval }}}
{{- end -}}
