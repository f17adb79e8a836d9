{{/* Name of everything that the release makes: the release's, with "turbo" in it. */}}
{{- define "turbo.fullname" -}}
{{- if contains "turbo" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-turbo" (.Release.Name | trunc 34 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "turbo.selector" -}}
app.kubernetes.io/name: turbo-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "turbo.labels" -}}
{{ include "turbo.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* repository:tag or repository@digest of one of .Values.image; called with (list . .Values.image.x). */}}
{{- define "turbo.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
