{{- define "roadstead.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 63 characters, as a label. */}}
{{- define "roadstead.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "roadstead.selectorLabels" -}}
app.kubernetes.io/name: {{ include "roadstead.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.mode }}
{{- end }}

{{- define "roadstead.labels" -}}
{{ include "roadstead.selectorLabels" . }}
{{ include "roadstead.versionLabels" . }}
{{- end }}

{{- define "roadstead.versionLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "roadstead.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "roadstead.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "roadstead.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "roadstead.config" -}}
{{- .Values.config | default (.Files.Get (printf "files/%s.toml" .Values.mode)) | trim }}
{{- end }}

{{- define "roadstead.scheme" -}}
{{- if and .Values.tls (eq .Values.mode "shared") }}https{{ else }}http{{ end }}
{{- end }}

{{/* What a container of the server may do. */}}
{{- define "roadstead.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Root, for a folder of the node. Without capabilities it can change only what belongs to root. */}}
{{- define "roadstead.rootSecurityContext" -}}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- with .Values.perNode.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The fields of both kinds of pods. */}}
{{- define "roadstead.podSpec" -}}
serviceAccountName: {{ include "roadstead.serviceAccountName" . }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
automountServiceAccountToken: false
# Variables such as ROADSTEAD_PORT would look like settings.
enableServiceLinks: false
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # Without this, every start would change the mode of every file.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The container of the server. */}}
{{- define "roadstead.container" -}}
{{- $perNode := eq .Values.mode "per-node" -}}
name: roadstead
image: {{ include "roadstead.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config
  - /etc/roadstead/roadstead.toml
  - --listen
  - {{ printf "%s:%d" (ternary "127.0.0.1" "" $perNode) (int .Values.port) | quote }}
  - --data
  - /var/lib/registry
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http
    containerPort: {{ .Values.port }}
startupProbe:
  {{- include "roadstead.probe" (list . "/healthz") | nindent 2 }}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  {{- include "roadstead.probe" (list . "/healthz") | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- include "roadstead.probe" (list . "/readyz") | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "roadstead.securityContext" . | nindent 2 }}
  {{- if $perNode }}
  {{- with .Values.perNode.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
volumeMounts:
  - name: data
    mountPath: /var/lib/registry
  - name: config
    mountPath: /etc/roadstead
    readOnly: true
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* An HTTP probe of a path. The kubelet is on the node, so it reaches 127.0.0.1 there. */}}
{{- define "roadstead.probe" -}}
{{- $root := index . 0 -}}
httpGet:
  {{- if eq $root.Values.mode "per-node" }}
  host: 127.0.0.1
  {{- end }}
  path: {{ index . 1 }}
  port: http
  {{- if eq (include "roadstead.scheme" $root) "https" }}
  scheme: HTTPS
  {{- end }}
{{- end }}

{{/* The configuration and the files of the secret, in one folder. */}}
{{- define "roadstead.configVolume" -}}
name: config
projected:
  defaultMode: 0440
  sources:
    - configMap:
        name: {{ include "roadstead.fullname" . }}
    {{- with .Values.existingSecret }}
    - secret:
        name: {{ . }}
    {{- end }}
{{- end }}

{{/* A change of the configuration restarts the pods. */}}
{{- define "roadstead.podMetadata" -}}
labels:
  {{- include "roadstead.selectorLabels" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "roadstead.config" . | sha256sum }}
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
