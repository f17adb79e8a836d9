{{/* Name of everything that the release makes: the release's, with "turbo" in it. At most 40 characters. */}}
{{- define "turbo.fullname" -}}
{{- $name := .Values.nameOverride | default "turbo" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc (int (sub 39 (len $name))) | trimSuffix "-") $name -}}
{{- end -}}
{{- end -}}

{{- define "turbo.name" -}}
{{- .Values.nameOverride | default "turbo-operator" -}}
{{- end -}}

{{/* `helm upgrade --reuse-values` from an older chart brings none. */}}
{{- define "turbo.replicas" -}}
{{- kindIs "invalid" .Values.replicas | ternary 2 .Values.replicas -}}
{{- end -}}

{{- define "turbo.selector" -}}
app.kubernetes.io/name: {{ include "turbo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "turbo.labels" -}}
{{ include "turbo.selector" . }}
{{ include "turbo.origin" . }}
{{- end -}}

{{/* Labels of the test's objects: no selector of the operator matches them. */}}
{{- define "turbo.testLabels" -}}
app.kubernetes.io/name: {{ include "turbo.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{ include "turbo.origin" . }}
{{- end -}}

{{- define "turbo.origin" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* `helm upgrade --reuse-values` from an older chart brings no serviceAccount at all. */}}
{{- define "turbo.serviceAccountName" -}}
{{- $account := .Values.serviceAccount | default dict -}}
{{- if dig "create" true $account -}}
{{- $account.name | default (include "turbo.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.create is false: name an existing one in serviceAccount.name." $account.name -}}
{{- end -}}
{{- end -}}

{{/* repository:tag or repository@digest of one of .Values.image, from the mirror where there is one; called with
(list . "operator"). */}}
{{- define "turbo.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- if not $image.repository -}}
{{- $why := "is empty, and the chart pulls no image of Turbo from a registry that you did not name." -}}
{{- $build := "Build and push the images with `make images REGISTRY=registry.example.com/turbo`, and" -}}
{{- $install := "install with the command that it prints." -}}
{{- fail (printf "image.%s.repository %s %s %s" (index . 1) $why $build $install) -}}
{{- end -}}
{{- $repository := $image.repository -}}
{{- with ($root.Values.global).imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- /* As container runtimes tell a registry from a folder of Docker Hub. */ -}}
{{- if and (rest $parts) (regexMatch "[.:]|^localhost$" (first $parts)) -}}
{{- $parts = rest $parts -}}
{{- end -}}
{{- $repository = printf "%s/%s" . (join "/" $parts) -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
