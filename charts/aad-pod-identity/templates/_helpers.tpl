{{- define "aad-pod-identity.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 59 | trimSuffix "-" }}
{{- end }}

{{- define "aad-pod-identity.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "aad-pod-identity.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "aad-pod-identity.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "aad-pod-identity.mic" -}}
{{ include "aad-pod-identity.name" . }}-mic
{{- end }}

{{- define "aad-pod-identity.nmi" -}}
{{ include "aad-pod-identity.name" . }}-nmi
{{- end }}

{{/* What selects a component's pods. It can never change: a workload's selector is immutable. */}}
{{- define "aad-pod-identity.selector" -}}
app.kubernetes.io/name: {{ include "aad-pod-identity.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "aad-pod-identity.labels" -}}
{{ include "aad-pod-identity.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* "true" or nothing: true and "true" are true, everything else is not. */}}
{{- define "aad-pod-identity.true" -}}
{{- if eq (toString .) "true" }}true{{ end }}
{{- end }}

{{/* "true" unless it is switched off: values of an older chart do not have it. */}}
{{- define "aad-pod-identity.legacyLock" -}}
{{- if ne (toString .Values.mic.leaderElection.legacyLock) "false" }}true{{ end }}
{{- end }}

{{- define "aad-pod-identity.standard" -}}
{{- if eq .Values.operationMode "standard" }}true{{ end }}
{{- end }}

{{- define "aad-pod-identity.image" -}}
{{- $image := printf "%s/%s" (trimSuffix "/" .root.Values.image.repository) .component.image }}
{{- $tag := .component.tag | default .root.Chart.AppVersion }}
{{- ternary (printf "%s@%s" $image $tag) (printf "%s:%s" $image $tag) (hasPrefix "sha256:" $tag) | quote }}
{{- end }}

{{/* Arguments from pairs of a flag's name and its value, for the values that are set. */}}
{{- define "aad-pod-identity.flags" -}}
{{- range . }}
{{- if not (has (toString (last .)) (list "" "<nil>")) }}
- {{ printf "--%s=%s" (first .) (toString (last .)) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of the Secret with MIC's credentials; nothing if azure.json has them. */}}
{{- define "aad-pod-identity.credentials" -}}
{{- .Values.mic.credentialsSecret | default (ternary (include "aad-pod-identity.mic" .) "" (not (empty .Values.adminsecret))) }}
{{- end }}

{{/* What a pod's spec begins with. */}}
{{- define "aad-pod-identity.placement" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .component.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .component.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .component.tolerations | default list }}
{{- with .root.Values.startupTaintKey }}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists") }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .component.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Annotations of what helm makes before it deletes a release; what failed stays, with its log. */}}
{{- define "aad-pod-identity.preDelete" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Liveness and readiness. NMI reads its rules back to answer, hence the timeout. */}}
{{- define "aad-pod-identity.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: {{ .port }}}
  initialDelaySeconds: 10
  periodSeconds: 5
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
