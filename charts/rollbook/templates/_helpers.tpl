{{/* The chart's name, as it is used in labels. */}}
{{- define "rollbook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/*
The name that all objects start with. Short enough for "-registry-peers", and for the hash that Kubernetes adds to
a StatefulSet's name in a label.
*/}}
{{- define "rollbook.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects a component's pods; never changes. Argument: (dict "root" $ "component" "registry") */}}
{{- define "rollbook.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rollbook.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of all objects. */}}
{{- define "rollbook.labels" -}}
{{ include "rollbook.selectorLabels" . }}
app.kubernetes.io/part-of: rollbook
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image. Argument: (dict "root" $ "image" .Values.registry.image) */}}
{{- define "rollbook.image" -}}
{{- $registry := default .root.Values.image.registry .root.Values.global.imageRegistry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}
{{- else }}:{{ coalesce .image.tag .root.Values.image.tag .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The name of a component's ServiceAccount. */}}
{{- define "rollbook.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- default (printf "%s-%s" (include "rollbook.fullname" .root) .component) $account.name -}}
{{- end -}}

{{/* Where sessions go: a name that resolves in every namespace, whatever the cluster's domain is. */}}
{{- define "rollbook.registryAddress" -}}
{{ include "rollbook.fullname" . }}.{{ .Release.Namespace }}.svc:7848
{{- end -}}

{{/* What the pod specs of all components share. */}}
{{- define "rollbook.pod" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: {{ include "rollbook.serviceAccountName" . }}
automountServiceAccountToken: true
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
{{- with concat .root.Values.global.imagePullSecrets .root.Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "rollbook.selectorLabels" $ | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The metadata of a component's pod template. */}}
{{- define "rollbook.podMetadata" -}}
{{- $values := index .root.Values .component -}}
labels:
  {{- include "rollbook.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A component's ServiceAccount. */}}
{{- define "rollbook.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "rollbook.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "rollbook.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* What all of a component's pods may reach, in a NetworkPolicy: names and the API server. */}}
{{- define "rollbook.egress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{/*
Namespaces whose pods never get a sidecar, as JSON. Rollbook's own is among them, so that it never depends on itself;
not `default`, where those who install without a namespace have their own pods too (Rollbook's are not annotated).
*/}}
{{- define "rollbook.excludedNamespaces" -}}
{{- $own := list -}}
{{- if ne .Release.Namespace "default" -}}{{- $own = list .Release.Namespace -}}{{- end -}}
{{- concat $own .Values.webhook.excludedNamespaces | uniq | toJson -}}
{{- end -}}
